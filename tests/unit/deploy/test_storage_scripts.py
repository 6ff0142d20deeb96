"""The two scripts of the storage components, against a small API server of their own."""

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

COMPONENTS = Path(__file__).parents[3] / "deploy" / "kuberay" / "components"
Answer = Callable[[str, str, Any], tuple[int, Any]]


def script(component: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, COMPONENTS / component / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("a-token\n")
    return tmp_path / "token"


class Server(ThreadingHTTPServer):
    """Answers with what `answer(method, path, body)` says, and refuses whoever has no token."""

    answer: Answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers["authorization"] != "Bearer a-token":
            code, told = 401, {}
        else:
            code, told = self.server.answer(self.command, self.path, json.loads(body) if body else None)
        data = json.dumps(told).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def volume(phase: str, claim: str | None) -> dict[str, Any]:
    return {"spec": {} if claim is None else {"claimRef": {"uid": claim}}, "status": {"phase": phase}}


def test_what_is_released_is_freed_and_what_is_bound_is_not(server: Server, token: Path) -> None:
    volumes = {"a": volume("Bound", "1"), "b": volume("Released", "2"), "c": volume("Available", None)}
    patches = []

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        name = path.removeprefix("/api/v1/persistentvolumes/")
        if method == "PATCH":
            patches.append((name, body))
        return 200, volumes[name]

    server.answer = answer
    free = script("storage-nvme", "free_volumes")
    assert free.run(free.Volumes(server.url, token=token, ca=None), ["a", "b", "c"]) == 0
    test, remove = (
        {"op": "test", "path": "/spec/claimRef/uid", "value": "2"},
        {"op": "remove", "path": "/spec/claimRef"},
    )
    assert patches == [("b", [test, remove])]


def test_a_volume_that_another_claim_has_by_now_is_left(server: Server, token: Path) -> None:
    server.answer = lambda method, path, body: (422, {}) if method == "PATCH" else (200, volume("Released", "1"))
    free = script("storage-nvme", "free_volumes")
    assert free.run(free.Volumes(server.url, token=token, ca=None), ["a"]) == 0


def test_a_volume_that_is_not_there_is_told_and_the_others_are_freed(
    server: Server, token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda method, path, body: (404, {}) if path.endswith("/a") else (200, volume("Released", "1"))
    free = script("storage-nvme", "free_volumes")
    assert free.run(free.Volumes(server.url, token=token, ca=None), ["a", "b"]) == 1
    told = capsys.readouterr()
    assert "a: HTTP Error 404" in told.err
    assert "b: freed" in told.out


def taken(server: Server, token: Path, **limits: float) -> int:
    take = script("warm-cache", "take_snapshot")
    snapshot = take.snapshot_of("seed", name="cache", snapshot_class="rag-stack")
    snapshots = take.Snapshots(server.url, "ns", token=token, ca=None)
    return int(take.run(snapshots, snapshot, poll_s=0.0, **limits))


def test_a_snapshot_is_taken_once_and_waited_for(server: Server, token: Path) -> None:
    root = "/apis/snapshot.storage.k8s.io/v1/namespaces/ns/volumesnapshots"
    states = iter([{}, {"status": {"error": {"message": "later"}}}, {"status": {"readyToUse": True}}])
    created = []

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            assert path == root
            created.append(body["spec"])
            return 201, body
        assert path == f"{root}/cache"
        return 200, next(states)

    server.answer = answer
    assert taken(server, token) == 0
    assert created == [{"volumeSnapshotClassName": "rag-stack", "source": {"persistentVolumeClaimName": "seed"}}]


def test_one_that_is_there_already_is_waited_for(server: Server, token: Path) -> None:
    server.answer = lambda method, path, body: (
        (409, {}) if method == "POST" else (200, {"status": {"readyToUse": True}})
    )
    assert taken(server, token) == 0


def test_one_that_does_not_get_ready_ends_the_job(server: Server, token: Path) -> None:
    server.answer = lambda method, path, body: (201, {}) if method == "POST" else (200, {})
    assert taken(server, token, limit_s=0.05) == 1
