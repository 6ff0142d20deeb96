"""`rag-stack cache` as a shell sees it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactKind, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.cli.main import app

RELEASE = """
name: town
artifacts: {{root: "{root}", cache: "{cache}"}}
model: {{name: words}}
embedder: {{name: vectors, version: v1}}
stores: [{{name: docs, index: notes}}]
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    monkeypatch.setenv("RAG_STACK_CACHE", f"{tmp_path}/cache")
    return tmp_path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["cache", *map(str, arguments)])


def shown(*arguments: Any) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def publish(directory: Path, name: str, *, kind: ArtifactKind = "models", size: int = 1000) -> Manifest:
    source = directory / f"source-{name}"
    source.mkdir()
    (source / "w.bin").write_bytes(name.encode()[:1] * size)
    catalog = Catalog(open_store(f"file://{directory}/store"))
    manifest = catalog.publish(source, kind=kind, name=name, metadata={}, version="v1")
    catalog.promote(manifest.ref)
    return manifest


def cached(directory: Path, manifest: Manifest) -> Path:
    found = NodeCache(directory / "cache").find(manifest)
    assert found is not None
    return found


def test_an_empty_cache(directory: Path) -> None:
    for command in ("ls", "verify"):
        assert f"nothing is cached in {directory}/cache" in run(command).stdout
        assert shown(command) == []
    assert shown("gc") == {"evicted": [], "leavings": [], "freed_bytes": 0, "used_bytes": 0}


def test_warm_brings_what_is_named_and_ls_shows_it_without_a_store(directory: Path) -> None:
    words, vectors = publish(directory, "words"), publish(directory, "vectors", size=2000)
    first, second = shown("warm", "models/words", "models/vectors/v1", "models/words/v1")
    assert (first["ref"], first["source"], first["moved_bytes"]) == ("models/words/v1", "object_store", 1000)
    assert (second["ref"], second["size_bytes"]) == ("models/vectors/v1", 2000)
    (again,) = shown("warm", "models/words")
    assert (again["source"], again["moved_bytes"], again["path"]) == ("cache", 0, first["path"])
    assert not list((directory / "cache").rglob(".unsynced"))

    shutil.rmtree(directory / "store")
    rows = {row["ref"]: row for row in shown("ls")}
    assert set(rows) == {"models/words/v1", "models/vectors/v1"}
    row = rows["models/words/v1"]
    assert (row["digest"], row["path"]) == (words.digest, str(cached(directory, words)))
    assert row["size_bytes"] >= 1000
    table = run("ls").stdout
    assert str(words.ref) in table
    assert vectors.hex[:12] in table
    assert f"bytes in {directory}/cache" in table


def test_warm_brings_what_a_release_names(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("words", "vectors"):
        publish(directory, name)
    publish(directory, "notes", kind="indexes")
    release = directory / "release.yaml"
    release.write_text(RELEASE.format(root=f"file://{directory}/store", cache=directory / "own"))
    monkeypatch.delenv("RAG_STACK_ROOT")
    monkeypatch.delenv("RAG_STACK_CACHE")
    refs = [row["ref"] for row in shown("warm", "--release", release)]
    assert refs == ["models/words/v1", "models/vectors/v1", "indexes/notes/v1"]
    assert {row["ref"] for row in shown("ls", "--cache", directory / "own")} == set(refs)
    result = run("warm", "--release", release, "--cache", directory / "other")
    assert "GB/s from object_store" in result.stdout
    assert "on the disk of this node" in result.stdout
    assert len(shown("ls", "--cache", directory / "other")) == 3


def test_the_option_goes_before_the_environment(directory: Path) -> None:
    publish(directory, "words")
    shown("warm", "models/words", "--cache", directory / "named")
    assert shown("ls") == []
    assert len(shown("ls", "--cache", directory / "named")) == 1


def test_verify_names_what_is_wrong(directory: Path) -> None:
    words, vectors = publish(directory, "words"), publish(directory, "vectors")
    shown("warm", "models/words", "models/vectors")
    assert run("verify").exit_code == 0
    assert "ok  models/words/v1" in run("verify", "models/words").stdout

    damaged = cached(directory, words) / "w.bin"
    damaged.chmod(0o644)
    damaged.write_bytes(b"W" + b"w" * 999)
    result = run("verify")
    assert result.exit_code == 1
    assert "'models/words/v1' is damaged: 'w.bin' is not what was verified" in result.stderr
    assert "ok  models/vectors/v1" in result.stdout
    result = run("verify", "--json")
    assert result.exit_code == 1
    assert {row["ref"]: row["problem"] is None for row in json.loads(result.stdout)} == {
        "models/words/v1": False,
        "models/vectors/v1": True,
    }
    assert run("verify", "models/vectors/v1").exit_code == 0
    absent = run("verify", "models/nobody")
    assert absent.exit_code == 1
    assert "'models/nobody' is not in" in absent.stderr
    (cached(directory, vectors) / "manifest.json").write_bytes(b"{}")
    assert "holds no readable manifest" in run("verify").stderr


def test_gc_evicts_what_is_not_in_use(directory: Path) -> None:
    words, vectors, notes = (publish(directory, name) for name in ("words", "vectors", "notes"))
    for manifest in (words, vectors, notes):
        shown("warm", manifest.ref)
    # The pins of these commands end with this process, which ran them all.
    assert all(row["pinned"] for row in shown("ls"))
    assert shown("gc", "--all")["evicted"] == []


def test_gc_says_what_it_freed(directory: Path) -> None:
    cache, sizes = NodeCache(directory / "cache"), (1000, 2000)
    catalog = Catalog(open_store(f"file://{directory}/store"))
    manifests = [publish(directory, name, size=size) for name, size in zip(("a", "b"), sizes, strict=True)]
    for manifest in manifests:
        content = catalog.store.read_bytes(f"{manifest.ref}/w.bin")
        cache.insert(manifest, lambda partial, content=content: partial.write(partial.chunks[0], content))
        cache.pin(manifest).release()
    cache.wait_synced()
    old = directory / "cache" / "artifacts" / ("0" * 64)
    old.mkdir()
    (old / "w.bin").write_bytes(b"old")
    (directory / "cache" / "partial" / ("1" * 64)).mkdir()

    assert "(unreadable)" in run("ls").stdout
    assert "`rag-stack cache gc`" in run("ls").stderr
    collected = shown("gc")
    assert [row["path"] for row in collected["evicted"]] == [str(old)]
    assert collected["leavings"] == ["1" * 64]
    collected = shown("gc", "--limit-bytes", 2900)
    assert [row["ref"] for row in collected["evicted"]] == ["models/a/v1"]
    assert 1000 <= collected["freed_bytes"] <= 2000
    result = run("gc", "--all")
    assert "evicted models/b/v1" in result.stdout
    assert "0 bytes stay, 0 of them in use by a process" in result.stdout
    assert shown("ls") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["warm"], "say what to warm: KIND/NAME[/VERSION]"),
        (["warm", "words"], "'words' is no address"),
        (["warm", "engines/words"], "kind must be one of models, indexes, releases"),
        (["warm", "models/nobody"], "nothing is promoted as models/nobody"),
        (["warm", "--release", "/nowhere.yaml"], "cannot read the release"),
        (["gc", "--all", "--limit-bytes", "1"], "exclude each other"),
    ],
)
def test_a_failure_is_one_line_on_stderr(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
