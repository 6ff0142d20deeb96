"""What a store and a cache of the first release, whose manifests have schema 1, get from the commands of this one."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import canonical_json
from rag_stack.artifacts.object_store import open_store
from rag_stack.cli.main import app
from tests.tiny_embedder import tiny_embedder

AGAIN = "was published by an older rag_stack; publish and promote it again"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and an index, published, promoted and cached as the first release did."""
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    monkeypatch.setenv("RAG_STACK_CACHE", f"{tmp_path}/cache")
    for kind in ("models", "indexes"):
        digest = _publish(tmp_path / "store" / kind / "old", kind=kind)
        cached = tmp_path / "cache" / "artifacts" / digest.removeprefix("sha256:")
        cached.mkdir(parents=True)
        (cached / "w.bin").write_bytes(kind.encode())
    return tmp_path / "store"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is imported in a second."""
    return tiny_embedder(tmp_path_factory.mktemp("embedder"))


def _publish(directory: Path, *, kind: str) -> str:
    content = kind.encode()
    file = {"path": "w.bin", "size_bytes": len(content), "digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    manifest = canonical_json(
        {
            "schema_version": 1,
            "kind": kind,
            "name": "old",
            "version": "v1",
            "parent": None,
            "files": [file],
            "metadata": {"task": "generate"},
        }
    )
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    pointer = {"version": "v1", "digest": digest, "previous": None, "promoted_at": "2026-11-01T00:00:00+00:00"}
    (directory / "v1").mkdir(parents=True)
    (directory / "v1" / "w.bin").write_bytes(content)
    (directory / "v1" / "manifest.json").write_bytes(manifest)
    (directory / "PROMOTED").write_bytes(canonical_json(pointer))
    return digest


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("ref", ["models/old", "models/old/v1", "indexes/old"])
def test_warm_says_to_publish_again(ref: str) -> None:
    result = run("cache", "warm", ref)
    assert (result.exit_code, result.stdout) == (1, "")
    assert AGAIN in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("model", "ls"), ("index", "versions", "old")])
def test_listing_names_it_and_goes_on(command: tuple[str, ...]) -> None:
    result = run(*command, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "old/v1/manifest.json" in result.stderr
    assert AGAIN in result.stderr


def test_listing_shows_what_is_new_beside_it(embedder: Path) -> None:
    assert run("model", "import", embedder, "--name", "new").exit_code == 0
    result = run("model", "ls", "--json")
    assert [row["name"] for row in json.loads(result.stdout)] == ["new"]
    assert AGAIN in result.stderr


def test_an_import_if_missing_replaces_it(store: Path, embedder: Path) -> None:
    result = run("model", "import", embedder, "--name", "old", "--if-missing", "--json")
    assert result.exit_code == 0
    catalog = Catalog(open_store(f"file://{store}"))
    assert catalog.resolve("models", "old").version == json.loads(result.stdout)["version"]
    pointer = catalog.promoted("models", "old")
    assert pointer is not None
    assert pointer.previous == "v1"
    assert run("cache", "warm", "models/old").exit_code == 0


def test_an_index_is_built_again_if_missing(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("A document.")
    spec = tmp_path / "old.yaml"
    spec.write_text("name: old\nsource: {folder: documents}\nembedder: {name: absent}\n")
    result = run("index", "build", spec, "--if-missing")
    # It does not count as built; to build it the embedder would have to be there.
    assert result.exit_code == 1
    assert "models/absent" in result.stderr


def test_an_index_of_an_older_format_is_built_again_if_missing(store: Path, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("A document.")
    catalog = Catalog(open_store(f"file://{store}"))
    old = catalog.publish(tmp_path / "documents", kind="indexes", name="docs", metadata={"format_version": 1})
    catalog.promote(old.ref)
    spec = tmp_path / "docs.yaml"
    spec.write_text("name: docs\nsource: {folder: documents}\nembedder: {name: absent}\n")
    result = run("index", "build", spec, "--if-missing")
    assert result.exit_code == 1
    assert "models/absent" in result.stderr


def test_the_cache_shows_what_it_cannot_read_and_clears_it(tmp_path: Path, embedder: Path) -> None:
    artifacts = tmp_path / "cache" / "artifacts"
    # Unlike the first release's, with a manifest, which is as old.
    (next(artifacts.iterdir()) / "manifest.json").write_bytes(canonical_json({"schema_version": 1}))
    rows = json.loads(run("cache", "ls", "--json").stdout)
    assert [row["ref"] for row in rows] == [None, None]
    assert "`rag-stack cache gc`" in run("cache", "ls").stderr
    verified = run("cache", "verify")
    assert verified.exit_code == 1
    assert verified.stderr.count("remove it with `rag-stack cache gc`") == 2
    assert run("cache", "verify", "models/old").exit_code == 1

    assert run("model", "import", embedder, "--name", "old").exit_code == 0
    assert run("cache", "warm", "models/old").exit_code == 0
    collected = json.loads(run("cache", "gc", "--json").stdout)
    assert len(collected["evicted"]) == 2
    assert [row["ref"] is None for row in json.loads(run("cache", "ls", "--json").stdout)] == [False]
    assert run("cache", "verify").exit_code == 0
