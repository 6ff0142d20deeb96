"""What stores and files over HTTP refuse, and how."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from rag_stack.errors import UnavailableError
from tests.store_server import StoreServer, serve_stores


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    root: Path = tmp_path_factory.mktemp("stores")
    with serve_stores(f"file://{root}/objects", root / "node") as server:
        yield server


@pytest.fixture(scope="module")
def http(server: StoreServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def store(http: httpx.Client) -> str:
    return str(http.post("/vector_stores", json={}).json()["id"])


@pytest.fixture(scope="module")
def file(http: httpx.Client) -> str:
    return str(http.post("/files", files={"file": ("a.txt", b"words")}, data={"purpose": "assistants"}).json()["id"])


def refused(response: httpx.Response, status: int, param: str | None = None) -> str:
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (status, {"message", "type", "param", "code"}), response.text
    if param is not None:
        assert error["param"] == param
    return str(error["message"])


UNKNOWN = [
    ("GET", "/vector_stores/vs_nope", None),
    ("POST", "/vector_stores/vs_nope", {"name": "x"}),
    ("DELETE", "/vector_stores/vs_nope", None),
    ("POST", "/vector_stores/vs_nope/search", {"query": "x"}),
    ("GET", "/vector_stores/vs_nope/files", None),
    ("GET", "/vector_stores/vs_nope/files/file-nope", None),
    ("DELETE", "/vector_stores/vs_nope/files/file-nope", None),
    ("GET", "/vector_stores/vs_nope/file_batches/vsfb_nope", None),
    ("GET", "/vector_stores/{store}/files/file-nope", None),
    ("GET", "/vector_stores/{store}/files/file-nope/content", None),
    ("POST", "/vector_stores/{store}/files/file-nope", {"attributes": {}}),
    ("DELETE", "/vector_stores/{store}/files/file-nope", None),
    ("POST", "/vector_stores/{store}/files", {"file_id": "file-nope"}),
    ("POST", "/vector_stores/{store}/file_batches", {"file_ids": ["file-nope"]}),
    ("GET", "/vector_stores/{store}/file_batches/vsfb_nope", None),
    ("POST", "/vector_stores/{store}/file_batches/vsfb_nope/cancel", {}),
    ("GET", "/vector_stores/{store}/file_batches/vsfb_nope/files", None),
    ("POST", "/vector_stores", {"file_ids": ["file-nope"]}),
    ("GET", "/files/file-nope", None),
    ("GET", "/files/file-nope/content", None),
    ("DELETE", "/files/file-nope", None),
    ("GET", "/files/..%2f..%2fetc", None),
]


@pytest.mark.parametrize(("method", "path", "body"), UNKNOWN, ids=[str(n) for n in range(len(UNKNOWN))])
def test_unknown_ids(http: httpx.Client, store: str, method: str, path: str, body: Any) -> None:
    refused(http.request(method, path.format(store=store), json=body), 404)


STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}
BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("", {"name": 5}, "name"),
    ("", {"metadata": {"k": 5}}, "metadata"),
    ("", {"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ("", {"metadata": {"k": "x" * 513}}, "metadata"),
    ("", {"expires_after": {"anchor": "last_active_at", "days": 1}}, "expires_after"),
    ("/files", {}, "file_id"),
    ("/files", {"file_id": 5}, "file_id"),
    ("/files", {"file_id": "{file}", "attributes": {"k": [1]}}, "attributes"),
    ("/files", {"file_id": "{file}", "attributes": {"k": {"a": 1}}}, "attributes"),
    ("/files", {"file_id": "{file}", "attributes": {"k": "x" * 513}}, "attributes"),
    ("/files", {"file_id": "{file}", "attributes": {"k" * 65: 1}}, "attributes"),
    ("/files", {"file_id": "{file}", "attributes": {"": 1}}, "attributes"),
    ("/files", {"file_id": "{file}", "attributes": {str(n): n for n in range(17)}}, "attributes"),
    ("/files", {"file_id": "{file}", "chunking_strategy": {"type": "clever"}}, "chunking_strategy"),
    ("/files", {"file_id": "{file}", "chunking_strategy": {"type": "static"}}, "chunking_strategy"),
    (
        "/files",
        {
            "file_id": "{file}",
            "chunking_strategy": {**STATIC, "static": {**STATIC["static"], "max_chunk_size_tokens": 800}},
        },
        "chunking_strategy",
    ),
    (
        "/files",
        {
            "file_id": "{file}",
            "chunking_strategy": {**STATIC, "static": {**STATIC["static"], "chunk_overlap_tokens": 51}},
        },
        "chunking_strategy",
    ),
    ("/files", {"file_id": "{file}", "attributes": {"filename": "b.txt"}}, "attributes"),
    ("/files/{file}", {"attributes": {"year": 1911, "path": "b.txt"}}, "attributes"),
    ("/file_batches", {"file_ids": ["{file}"], "attributes": {"path": 5}}, "attributes"),
    ("/file_batches", {"files": [{"file_id": "{file}", "attributes": {"filename": "b"}}]}, "attributes"),
    ("/files/{file}", {}, "attributes"),
    ("/files/{file}", {"attributes": 5}, "attributes"),
    ("/file_batches", {}, "file_ids"),
    ("/file_batches", {"file_ids": []}, "file_ids"),
    ("/file_batches", {"file_ids": ["{file}", "{file}"]}, "file_ids"),
    ("/file_batches", {"file_ids": ["{file}"], "files": [{"file_id": "{file}"}]}, "file_ids"),
    ("/file_batches", {"files": [{"attributes": {}}]}, "files"),
    ("/file_batches", {"file_ids": ["x"] * 2001}, "file_ids"),
]


@pytest.mark.parametrize(("path", "body", "param"), BODIES, ids=[str(n) for n in range(len(BODIES))])
def test_bodies(http: httpx.Client, store: str, file: str, path: str, body: dict[str, Any], param: str) -> None:
    sent = httpx.Request("POST", "http://x", json=body).read().replace(b"{file}", file.encode())
    response = http.post(
        f"/vector_stores/{store}{path.format(file=file)}", content=sent, headers={"content-type": "application/json"}
    )
    refused(response, 400, param)
    assert http.get(f"/vector_stores/{store}").json()["file_counts"]["total"] == 0


def test_the_embedder_bounds_the_chunks(http: httpx.Client, store: str, file: str) -> None:
    asked = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}
    body = {"file_id": file, "chunking_strategy": asked}
    assert "16 to 254" in refused(http.post(f"/vector_stores/{store}/files", json=body), 400)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("POST", "/files", {"file_id": "{file}"}),
        ("GET", "/files", None),
        ("POST", "/file_batches", {"file_ids": ["{file}"]}),
    ],
)
def test_the_releases_stores_are_read_only(
    http: httpx.Client, file: str, method: str, path: str, body: dict[str, Any] | None
) -> None:
    if body and "file_id" in body:
        body = {"file_id": file}
    elif body and "file_ids" in body:
        body = {"file_ids": [file]}
    assert "read-only" in refused(http.request(method, f"/vector_stores/town{path}", json=body), 400)
    assert http.get("/vector_stores/town").json()["file_counts"]["completed"] == 3
    assert http.post("/vector_stores/town/search", json={"query": "harbour"}).json()["data"]


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"data": {"purpose": "assistants"}, "files": {"other": ("a", b"x")}}, 400, "file"),
        ({"files": {"file": ("a.txt", b"x")}}, 400, "purpose"),
        ({"files": {"file": ("a.txt", b"x")}, "data": {"purpose": "world peace"}}, 400, "purpose"),
        (
            {"files": {"file": ("a.txt", b"x")}, "data": {"purpose": "batch", "expires_after[seconds]": "3600"}},
            400,
            "expires_after",
        ),
        ({"json": {"purpose": "assistants"}}, 415, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, None),
    ],
)
def test_forms(http: httpx.Client, given: dict[str, Any], status: int, param: str | None) -> None:
    before = len(http.get("/files").json()["data"])
    refused(http.post("/files", **given), status, param)
    assert len(http.get("/files").json()["data"]) == before


def test_a_file_over_the_limit(server: StoreServer, http: httpx.Client) -> None:
    before = len(http.get("/files").json()["data"])
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.files.create(file=("big.txt", bytes(101 << 20)), purpose="assistants")
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert len(http.get("/files").json()["data"]) == before


def test_a_file_over_the_limit_without_a_length(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(64):
            yield bytes(1 << 16)

    with serve_stores(f"file://{tmp_path}/objects", tmp_path / "node", max_file_bytes=1 << 20) as server:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        with httpx.Client(timeout=30) as client:
            refused(client.post(f"{server.url}/v1/files", content=pieces(), headers=headers), 413, "file")
            exactly = {"file": ("a.txt", bytes(1 << 20))}
            assert client.post(f"{server.url}/v1/files", files=exactly, data={"purpose": "batch"}).status_code == 200
            over = {"file": ("a.txt", bytes((1 << 20) + 1))}
            refused(client.post(f"{server.url}/v1/files", files=over, data={"purpose": "batch"}), 413, "file")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.zip", b"PK\x03\x04\x00\x00binary", "unsupported_file"),
        ("empty.txt", b"", "invalid_file"),
        ("latin.txt", "Größe".encode("latin-1"), "invalid_file"),
    ],
)
def test_a_file_that_cannot_be_read_fails_alone(server: StoreServer, name: str, content: bytes, code: str) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        store = client.vector_stores.create()
        batch = client.vector_stores.file_batches.upload_and_poll(
            store.id, files=[(name, content), ("good.txt", b"good words")]
        )
        assert (batch.file_counts.completed, batch.file_counts.failed) == (1, 1)
        (failed,) = client.vector_stores.files.list(store.id, filter="failed").data
        assert failed.last_error is not None
        assert failed.last_error.code == code
        with pytest.raises(openai.BadRequestError):
            client.vector_stores.files.content(failed.id, vector_store_id=store.id)


@pytest.mark.parametrize("path", ["/vector_stores", "/vector_stores/{store}/files", "/files"])
@pytest.mark.parametrize("query", ["limit=0", "limit=x", "order=up", "filter=done", "purpose=x", "limit=99999"])
def test_listings(http: httpx.Client, store: str, path: str, query: str) -> None:
    known = {"/files": ("limit", "order", "purpose"), "/vector_stores": ("limit", "order")}
    name = query.partition("=")[0]
    if name not in known.get(path, ("limit", "order", "filter")):
        pytest.skip("not a parameter there")
    refused(http.get(f"{path.format(store=store)}?{query}"), 400, name)


def test_keys(tmp_path: Path) -> None:
    with (
        serve_stores(f"file://{tmp_path}/objects", tmp_path / "node", keys=["secret"]) as server,
        httpx.Client(base_url=f"{server.url}/v1") as client,
    ):
        for path in ("/vector_stores", "/files", "/files/file-x", "/vector_stores/vs_x/files"):
            assert refused(client.get(path), 401)
        assert refused(client.post("/files", files={"file": ("a.txt", b"x")}), 401)
        headers = {"authorization": "Bearer secret"}
        assert client.get("/files", headers=headers).status_code == 200


def test_a_change_that_takes_too_long_is_told_and_goes_on(tmp_path: Path) -> None:
    silent = False

    class Silent:
        """A coordinator that does not answer for a while."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        async def settle(self, store: str, version: str, timeout_s: float) -> Any:
            if silent:
                raise UnavailableError("the coordinator does not answer")
            return await self._inner.settle(store, version, timeout_s)

    with (
        serve_stores(
            f"file://{tmp_path}/objects",
            tmp_path / "node",
            around=lambda build, rollout: (build, Silent(rollout)),
            wait_s=0.3,
        ) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        store = client.vector_stores.create().id
        keep, gone = (
            client.vector_stores.files.upload_and_poll(vector_store_id=store, file=(name, b"words of Brel")).id
            for name in ("keep.txt", "gone.txt")
        )
        silent = True
        for change in (
            lambda: client.vector_stores.files.delete(gone, vector_store_id=store),
            lambda: client.vector_stores.files.update(keep, vector_store_id=store, attributes={"a": 1}),
            lambda: client.files.delete(gone),
        ):
            with pytest.raises(openai.InternalServerError) as caught:
                change()
            assert caught.value.status_code == 503
            assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
        silent = False
        with client.with_options(max_retries=5) as patient:
            assert patient.vector_stores.files.delete(gone, vector_store_id=store).deleted, "and no 404"
            assert patient.files.delete(gone).deleted
            updated = patient.vector_stores.files.update(keep, vector_store_id=store, attributes={"a": 1})
        assert updated.attributes == {"a": 1.0}
