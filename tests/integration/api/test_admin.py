"""/admin/indexes behind a real server."""

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag_stack.api.admin import Admin
from rag_stack.api.auth import AdminKeyRing, KeyRing, digest
from rag_stack.api.gate import Gate
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.file_store import FileStore
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.retention import Retention
from rag_stack.metrics import MemoryRecorder
from rag_stack.stores.register import Register
from tests.published import publish_index
from tests.servers import serve

WAIT_S = 30.0
SWAP = {"store": "docs", "version": "v2", "lagging": [{"participant": "engine/ab12", "reason": "no room"}]}


@dataclass
class Served:
    """An admin API, and what its hook was told."""

    catalog: Catalog
    http: httpx.Client
    told: list[tuple[str, str]] = field(default_factory=list)

    def get(self, path: str, status: int = 200, **options: Any) -> Any:
        return self._checked(self.http.get(path, **options), status)

    def post(self, path: str, body: Any, status: int = 200, **options: Any) -> Any:
        return self._checked(self.http.post(path, json=body, **options), status)

    def _checked(self, reply: httpx.Response, status: int) -> Any:
        assert reply.status_code == status, reply.text
        return reply.json() if status == 200 else reply.json()["error"]


@contextlib.contextmanager
def serving(
    catalog: Catalog,
    *,
    admin: tuple[str, ...] = (),
    api: tuple[str, ...] = (),
    broken_hook: bool = False,
    waiting: int = 8,
) -> Iterator[Served]:
    keys = AdminKeyRing([digest(key) for key in admin], api_digests=[digest(key) for key in api])
    told: list[tuple[str, str]] = []

    async def promoted(name: str, version: str) -> None:
        told.append((name, version))
        if broken_hook:
            raise RuntimeError("nobody listens")

    routes = Admin(
        catalog,
        Retention(catalog),
        keys,
        max_body_bytes=1 << 16,
        promoted=promoted,
        queue=waiting,
        swaps=lambda: [SWAP],
    )
    gate = Gate(routes.routes(), keys=KeyRing(()), open_paths=(), recorder=MemoryRecorder())
    with serve(gate) as url, httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as http:
        yield Served(catalog, http, told)
    routes.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with v1 to v3 of "docs"."""
    directory = tmp_path_factory.mktemp("built")
    catalog = Catalog(FileStore(directory / "store"))
    for number in range(1, 4):
        publish_index(catalog, directory, {"a": "rye bread", "b": f"text {number}"}, version=f"v{number}")
    return directory / "store"


@pytest.fixture
def catalog(built: Path, tmp_path: Path) -> Catalog:
    """A copy of it, with v1 and v2 promoted."""
    shutil.copytree(built, tmp_path / "store")
    catalog = Catalog(FileStore(tmp_path / "store"))
    for version in ("v1", "v2"):
        catalog.promote(ArtifactRef("indexes", "docs", version))
    return catalog


@pytest.fixture
def served(catalog: Catalog) -> Iterator[Served]:
    with serving(catalog) as served:
        yield served


def test_what_is_there(served: Served) -> None:
    (index,) = served.get("/admin/indexes")["data"]
    assert (index["name"], index["version"], index["promoted"]["number"]) == ("docs", "v2", 2)
    rows = served.get("/admin/indexes/docs/versions")["data"]
    assert [(row["version"], row["promoted"], row["documents"]) for row in rows] == [
        ("v1", False, 2),
        ("v2", True, 2),
        ("v3", False, 2),
    ]
    history = served.get("/admin/indexes/docs/history?limit=1")["data"]
    assert [(row["number"], row["version"]) for row in history] == [(2, "v2")]
    difference = served.get("/admin/indexes/docs/diff?from=v1")
    assert (difference["to"], difference["documents"]["changed_names"]) == ("v2", ["b.txt"])
    assert served.get("/admin/indexes/docs/diff?from=v1&to=v3")["to"] == "v3"


def test_promote_and_roll_back(served: Served) -> None:
    body = {"version": "v3", "reason": "newer", "expected_version": "v2", "by": "ann"}
    promoted = served.post("/admin/indexes/docs/promote", body)
    assert (promoted["version"], promoted["by"], promoted["reason"]) == ("v3", "anonymous ann", "newer")
    assert served.post("/admin/indexes/docs/rollback", {"reason": "worse"})["version"] == "v2"
    assert served.post("/admin/indexes/docs/rollback", {"to": "v1"})["restores"] == 1
    assert served.told == [("docs", "v3"), ("docs", "v2"), ("docs", "v1")]
    error = served.post("/admin/indexes/docs/rollback", {}, status=409)
    assert (error["code"], error["type"]) == ("no_way_back", "conflict_error")
    assert [row["version"] for row in served.get("/admin/indexes/docs/history")["data"]] == [
        "v1",
        "v2",
        "v3",
        "v2",
        "v1",
    ]


def test_the_index_of_a_store_made_over_http_is_not_moved_by_hand(served: Served) -> None:
    name = Register(served.catalog.store).create(name="one", metadata={}, attachments=[]).store_id
    for path, body in (("promote", {"version": "v1", "force": True}), ("rollback", {})):
        error = served.post(f"/admin/indexes/{name}/{path}", body, status=409)
        assert error["code"] == "conflict"
        assert "belongs to a store made over HTTP; change its files instead" in error["message"]


def test_a_conflict_is_a_409(served: Served) -> None:
    error = served.post("/admin/indexes/docs/promote", {"version": "v3", "expected_version": "v1"}, status=409)
    assert (error["code"], error["type"]) == ("conflict", "conflict_error")
    assert "expected 'v1'" in error["message"]
    assert served.told == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/admin/indexes/other/versions", None),
        ("GET", "/admin/indexes/other/history", None),
        ("GET", "/admin/indexes/.hidden/history", None),
        ("GET", "/admin/indexes/docs/diff?from=v9", None),
        ("GET", "/admin/indexes/docs/diff?from=v1&to=v9", None),
        ("POST", "/admin/indexes/docs/promote", {"version": "v9"}),
        ("POST", "/admin/indexes/docs/verify", {"version": "v9"}),
        ("POST", "/admin/indexes/other/verify", {}),
    ],
)
def test_what_is_not_there_is_a_404(served: Served, method: str, path: str, body: Any) -> None:
    reply = served.http.request(method, path, json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("promote", {}, "version"),
        ("promote", {"version": "../v1"}, "version"),
        ("promote", {"version": "PROMOTED"}, "version"),
        ("promote", {"version": "v1", "force": "perhaps"}, "force"),
        ("promote", {"version": "v1", "reason": "x" * 1001}, "reason"),
        ("promote", {"version": "v1", "by": "x" * 101}, "by"),
        ("rollback", {"to": 1}, "to"),
        ("gc", {"keep": -1}, "keep"),
        ("gc", {"older_than": "yesterday"}, None),
        ("gc", {"older_than": -1.5}, None),
    ],
)
def test_what_cannot_be_understood_is_a_400(served: Served, path: str, body: Any, param: str | None) -> None:
    error = served.post(f"/admin/indexes/docs/{path}", body, status=400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_a_query_that_cannot_be_understood_is_a_400(served: Served) -> None:
    for path in ("diff", "diff?from=..", "history?limit=0", "history?limit=1001"):
        assert served.get(f"/admin/indexes/docs/{path}", status=400)["type"] == "invalid_request_error"


def test_what_is_wrong_with_a_version_is_an_answer(served: Served, tmp_path: Path) -> None:
    assert served.post("/admin/indexes/docs/verify", {})["ok"]
    with (tmp_path / "store/indexes/docs/v1/documents.arrow").open("r+b") as file:
        file.write(b"x")
    found = served.post("/admin/indexes/docs/verify", {"version": "v1"})
    assert (found["ok"], found["version"]) == (False, "v1")
    assert "documents.arrow" in found["problem"]


def test_gc(served: Served, tmp_path: Path) -> None:
    assert served.post("/admin/indexes/docs/gc", {"older_than": 0})["deleted"] == []
    for folder, _, names in os.walk(tmp_path / "store"):
        for name in names:
            os.utime(Path(folder) / name, (0, 0))
    foreseen = served.post("/admin/indexes/docs/gc", {"dry_run": True, "keep": 0, "older_than": "1d"})
    done = served.post("/admin/indexes/docs/gc", {"keep": 0})
    assert [each["version"] for each in foreseen["deleted"]] == [each["version"] for each in done["deleted"]] == ["v3"]
    assert {each["version"]: each["reasons"] for each in done["kept"]} == {
        "v1": ["what a rollback goes back to"],
        "v2": ["promoted"],
    }


def test_a_promotion_holds_although_nobody_could_be_told(catalog: Catalog) -> None:
    with serving(catalog, broken_hook=True) as served:
        assert served.post("/admin/indexes/docs/promote", {"version": "v3"})["version"] == "v3"
        assert served.told == [("docs", "v3")]


def test_admin_calls_have_keys_of_their_own(catalog: Catalog) -> None:
    with serving(catalog, admin=("root",), api=("user",)) as served:
        assert served.get("/admin/indexes", status=401)["code"] == "invalid_api_key"
        assert served.get("/admin/swaps", status=401)["code"] == "invalid_api_key"
        for key, status, code in (("other", 401, "invalid_api_key"), ("user", 403, "permission_denied")):
            headers = {"authorization": f"Bearer {key}"}
            assert served.get("/admin/indexes", status=status, headers=headers)["code"] == code
            body = {"version": "v3"}
            assert served.post("/admin/indexes/docs/promote", body, status=status, headers=headers)["code"] == code
        headers = {"authorization": "Bearer root"}
        assert served.get("/admin/swaps", headers=headers) == {"object": "list", "data": [SWAP]}
        promoted = served.post("/admin/indexes/docs/promote", {"version": "v3", "by": "ann"}, headers=headers)
        assert promoted["by"] == f"{digest('root')[:8]} ann"
        assert served.post("/admin/indexes/docs/rollback", {}, headers=headers)["by"] == digest("root")[:8]


def test_without_admin_keys_a_server_with_keys_is_closed(catalog: Catalog) -> None:
    with serving(catalog, api=("user",)) as served:
        headers = {"authorization": "Bearer user"}
        error = served.get("/admin/indexes", status=403, headers=headers)
        assert (error["code"], error["type"]) == ("permission_denied", "permission_error")
        assert "server.admin_key_sha256" in error["message"]
        assert served.get("/admin/indexes", status=401)["code"] == "invalid_api_key"


def test_with_admin_keys_alone_admin_calls_need_one(catalog: Catalog) -> None:
    with serving(catalog, admin=("root",)) as served:
        served.get("/admin/indexes", status=401)
        served.get("/admin/indexes", headers={"authorization": "Bearer root"})


def test_too_many_that_wait_are_refused_and_promotions_go_on(catalog: Catalog, tmp_path: Path) -> None:
    opened, replies = threading.Event(), queue.Queue[httpx.Response]()

    class Held(FileStore):
        def reader(self, key: str) -> Any:
            if key.endswith("/documents.arrow"):
                assert opened.wait(WAIT_S)
            return super().reader(key)

    with serving(Catalog(Held(tmp_path / "store")), waiting=1) as served:
        compare = "/admin/indexes/docs/diff?from=v1&to=v3"
        threads = [threading.Thread(target=lambda: replies.put(served.http.get(compare))) for _ in range(3)]
        try:
            for thread in threads:
                thread.start()
            # One runs, one waits, and one is refused.
            refused = replies.get(timeout=WAIT_S)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert served.post("/admin/indexes/docs/promote", {"version": "v3"})["version"] == "v3"
        finally:
            opened.set()
            for thread in threads:
                thread.join(WAIT_S)
        assert [replies.get(timeout=WAIT_S).status_code for _ in range(2)] == [200, 200]
