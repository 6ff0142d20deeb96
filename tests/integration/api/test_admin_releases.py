"""/admin/releases behind a real server, and the command line's --server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from rag_stack.api.auth import AdminKeyRing, KeyRing, digest
from rag_stack.api.gate import Gate
from rag_stack.api.releases import ReleaseAdmin
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.main import app
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.releases.rollout import Rollout
from tests.pinnable import publish_docs, publish_model
from tests.servers import serve

KEY = "operator"


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Catalog, str, str]:
    """A catalog with a release that is promoted, and one on its way."""
    config = ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache")
    tiers = open_tiers(config, MemoryRecorder())
    publish_model(tiers.catalog, tmp_path, "generator", "weights")
    publish_docs(tiers.catalog, tmp_path, "v1", embedder=publish_model(tiers.catalog, tmp_path, "words", "embedder"))
    tiers.catalog.promote(ArtifactRef("indexes", "docs", "v1"))
    applied = []
    for top_k in (3, 4):
        release = Release.model_validate(
            {
                "name": "demo",
                "artifacts": config,
                "model": {"name": "generator"},
                "embedder": {"name": "words"},
                "stores": [{"name": "docs", "index": "docs"}],
                "retrieval": {"top_k": top_k},
            }
        )
        applied.append(Rollout(tiers.catalog, "demo").apply(pin(release, tiers), reason=f"top {top_k}").version)
    return tiers.catalog, applied[0], applied[1]


@pytest.fixture
def url(versions: tuple[Catalog, str, str]) -> Iterator[str]:
    admin = ReleaseAdmin(
        versions[0],
        AdminKeyRing([digest(KEY)], api_digests=[]),
        max_body_bytes=1 << 16,
        now=lambda name: {"waits_for": f"a replica of {name}"},
    )
    gate = Gate(admin.routes(), keys=KeyRing(()), open_paths=(), recorder=MemoryRecorder())
    with serve(gate) as url:
        yield url
    admin.close()


def call(url: str, method: str, path: str, status: int = 200, **options: Any) -> Any:
    headers = options.pop("headers", {"authorization": f"Bearer {KEY}"})
    reply = httpx.request(method, f"{url}{path}", headers=headers, timeout=30, trust_env=False, **options)
    assert reply.status_code == status, reply.text
    return reply.json() if status == 200 else reply.json()["error"]


def test_reading(url: str, versions: tuple[Catalog, str, str]) -> None:
    _, old, new = versions
    row = call(url, "GET", "/admin/releases/demo")
    assert (row["version"], row["plan"]["new"], row["plan"]["state"]) == (old, new, "canary")
    assert row["now"] == {"waits_for": "a replica of demo"}
    assert row["shares"] == {old: 1.0, new: 0.0}
    assert [each["name"] for each in call(url, "GET", "/admin/releases")["data"]] == ["demo"]
    assert call(url, "GET", "/admin/releases/demo/history?limit=1")["promotions"][0]["version"] == old


def test_one_that_was_never_applied_hides_no_other(
    url: str, versions: tuple[Catalog, str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "killed-before-its-plan"
    folder.mkdir()
    (folder / "release.json").write_text("{}")
    versions[0].publish(folder, kind="releases", name="begun", metadata={})
    assert [each["name"] for each in call(url, "GET", "/admin/releases")["data"]] == ["demo"]


def test_rolling_back(url: str, versions: tuple[Catalog, str, str]) -> None:
    _, old, new = versions
    told = call(url, "POST", "/admin/releases/demo/rollback", 409, json={"expected_version": old})
    assert told["code"] == "conflict"
    row = call(url, "POST", "/admin/releases/demo/rollback", json={"reason": "bad", "by": "ops"})
    assert (row["plan"]["state"], row["plan"]["new"], row["plan"]["reason"]) == ("rolling_back", new, "bad")
    assert row["plan"]["by"].endswith("ops")


@pytest.mark.parametrize(
    ("method", "path", "status", "options"),
    [
        ("GET", "/admin/releases/other", 404, {}),
        ("GET", "/admin/releases/no%20name", 404, {}),
        ("GET", "/admin/releases/demo/history?limit=0", 400, {}),
        ("POST", "/admin/releases/demo/rollback", 400, {"json": {"to": "ROLLOUT"}}),
        ("POST", "/admin/releases/demo/rollback", 409, {"json": {"to": "unknown"}}),
        ("GET", "/admin/releases", 401, {"headers": {}}),
        ("POST", "/admin/releases/demo/rollback", 401, {"headers": {}, "json": {}}),
    ],
)
def test_refusals(url: str, method: str, path: str, status: int, options: dict[str, Any]) -> None:
    assert call(url, method, path, status, **options)["message"]


def test_the_command_line_asks_a_server(
    url: str, versions: tuple[Catalog, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_STACK_ADMIN_KEY", KEY)
    _, old, new = versions

    def run(command: str, *more: str) -> Any:
        result = CliRunner().invoke(app, ["release", command, "demo", "--server", url, "--json", *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert run("status")["now"] == {"waits_for": "a replica of demo"}
    assert run("rollback", "--reason", "bad")["plan"]["new"] == new
    assert run("history")["promotions"][0]["version"] == old
    monkeypatch.setenv("RAG_STACK_ADMIN_KEY", "other")
    result = CliRunner().invoke(app, ["release", "status", "demo", "--server", url])
    assert (result.exit_code, "answered 40" in result.stderr) == (1, True)
