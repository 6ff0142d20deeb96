"""What `rag-stack serve` refuses before it starts anything, and what it says."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    ConfigError,
    EmbedderMismatchError,
    EngineMissingError,
    IndexVersionError,
)
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import Document
from rag_stack.index.format import EmbedderRef
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.rollout import Rollout
from rag_stack.serving.startup import make_current, preflight, require_engine, require_port, without_words
from rag_stack.timeline import Timeline
from tests.embedder import WordEmbedder
from tests.layer import TOWN


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    """Published: a model, an embedder and an index that was built with it."""
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    for name in ("generator", "words"):
        _publish(tiers.catalog, tmp_path, name=name, text=name)
    _publish_index(tiers, tmp_path / "town", embedder_digest=tiers.catalog.resolve("models", "words").digest)
    return tiers


def release(tmp_path: Path, **changes: Any) -> Release:
    fields = {
        "name": "test",
        "artifacts": {"root": f"file://{tmp_path}/store", "cache": tmp_path / "cache"},
        "model": {"name": "generator"},
        "embedder": {"name": "words"},
        "stores": [{"name": "town", "index": "town"}],
    }
    return Release.model_validate(fields | changes)


def start(tiers: Tiers, chosen: Release) -> PinnedRelease:
    pinned = pin(chosen, tiers)
    preflight(pinned, tiers, timeline=Timeline())
    return pinned


def test_a_good_release_is_pinned_to_exact_versions(tmp_path: Path, tiers: Tiers) -> None:
    pinned = start(tiers, release(tmp_path))
    assert pinned.release.model.version == tiers.catalog.resolve("models", "generator").version
    assert pinned.release.stores[0].version == tiers.catalog.resolve("indexes", "town").version
    assert pinned.release.artifacts.cache.is_absolute()


def test_nothing_published_names_the_command(tmp_path: Path) -> None:
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/empty", cache=tmp_path / "cache"), MemoryRecorder())
    with pytest.raises(ArtifactNotFoundError, match="rag-stack model import"):
        start(tiers, release(tmp_path))


def test_an_index_of_another_embedder_is_refused(tmp_path: Path, tiers: Tiers) -> None:
    _publish(tiers.catalog, tmp_path, name="words", text="other weights")
    with pytest.raises(EmbedderMismatchError, match=r"rag-stack index build"):
        start(tiers, release(tmp_path))


def test_a_truncated_index_in_the_cache_is_refused(tmp_path: Path, tiers: Tiers) -> None:
    path = tiers.ensure_local(tiers.catalog.resolve("indexes", "town")).path / "index.faiss"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactCorruptError, match=r"index\.faiss"):
        start(tiers, release(tmp_path))


def test_a_truncated_index_in_the_store_is_refused(tmp_path: Path, tiers: Tiers) -> None:
    stored = next((tmp_path / "store" / "indexes" / "town").glob("*/index.faiss"))
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(ArtifactCorruptError, match=r"index\.faiss"):
        start(tiers, release(tmp_path))


def test_an_index_that_was_published_broken_is_refused(tmp_path: Path, tiers: Tiers) -> None:
    folder = tmp_path / "broken"
    digest = tiers.catalog.resolve("models", "words").digest
    metadata = _write_index(folder, embedder_digest=digest)
    (folder / "index.faiss").write_bytes((folder / "index.faiss").read_bytes()[:-100])
    tiers.catalog.promote(tiers.catalog.publish(folder, kind="indexes", name="town", metadata=metadata).ref)
    with pytest.raises(IndexVersionError, match="truncated"):
        start(tiers, release(tmp_path))


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path, tiers: Tiers) -> None:
    manifest = next((tmp_path / "store" / "indexes" / "town").glob("*/manifest.json"))
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b'"passages":3', b'"passages":4'))
    with pytest.raises(ArtifactCorruptError, match="digest"):
        start(tiers, release(tmp_path))


def test_what_is_pinned_and_cached_needs_no_object_store(tmp_path: Path, tiers: Tiers) -> None:
    """A second replica of a node, or one that starts while the store is down."""
    pinned = start(tiers, release(tmp_path))
    (tmp_path / "store").rename(tmp_path / "away")
    again = open_tiers(pinned.release.artifacts, MemoryRecorder())
    assert preflight(pinned, again, timeline=Timeline()).is_dir()
    assert pin(pinned.release, again).release == pinned.release


def test_a_version_with_another_content_than_the_release_says_is_refused(tmp_path: Path, tiers: Tiers) -> None:
    other = "sha256:" + "0" * 64
    with pytest.raises(ArtifactCorruptError, match="the release names"):
        start(tiers, release(tmp_path, model={"name": "generator", "digest": other}))


def test_a_model_with_code_is_refused_before_it_is_fetched(tmp_path: Path, tiers: Tiers) -> None:
    _publish(tiers.catalog, tmp_path, name="generator", text="together with code", beside="modeling.py")
    with pytest.raises(ArtifactError, match=r"modeling\.py"):
        start(tiers, release(tmp_path))
    assert tiers.cache.find(tiers.catalog.resolve("models", "generator")) is None


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match="--port"):
            require_port(release(tmp_path, server={"port": port}))


def test_a_served_file_is_what_replicas_take(tmp_path: Path, tiers: Tiers) -> None:
    first = pin(release(tmp_path), tiers)
    assert make_current(first, tiers) == make_current(first, tiers) == ""
    told = make_current(pin(release(tmp_path, prompt={"system": "Be brief."}), tiers), tiers)
    assert f"({first.version}) and takes its place" in told


def test_a_followed_store_that_moves_makes_no_other_file(tmp_path: Path, tiers: Tiers) -> None:
    first = pin(release(tmp_path), tiers)
    make_current(first, tiers)
    _publish_index(tiers, tmp_path / "next", embedder_digest=first.release.embedder.digest or "", documents=TOWN[:1])
    moved = pin(release(tmp_path), tiers)
    assert moved.version != first.version
    assert make_current(moved, tiers) == ""
    rollout = Rollout(tiers.catalog, "test")
    rollout.apply(pin(release(tmp_path, prompt={"system": "Be brief."}), tiers))
    before = rollout.plan()
    assert "is canary, and goes on" in make_current(moved, tiers)
    assert rollout.plan() == before


@pytest.mark.parametrize("name", ["onnxruntime", "bm25s", "Stemmer"])
def test_a_package_of_a_replica_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == name else object())
    with pytest.raises(EngineMissingError, match=f"needs {name}, "):
        require_engine()


def _publish(catalog: Catalog, tmp_path: Path, *, name: str, text: str, beside: str = "config.json") -> None:
    folder = tmp_path / f"{name}-{len(text)}"
    folder.mkdir()
    (folder / "weights.safetensors").write_text(text)
    (folder / beside).write_text("{}")
    catalog.promote(catalog.publish(folder, kind="models", name=name, metadata={}).ref)


def _publish_index(tiers: Tiers, folder: Path, *, embedder_digest: str, documents: Sequence[Document] = TOWN) -> None:
    metadata = _write_index(folder, embedder_digest=embedder_digest, documents=documents)
    tiers.catalog.promote(tiers.catalog.publish(folder, kind="indexes", name="town", metadata=metadata).ref)


def _write_index(folder: Path, *, embedder_digest: str, documents: Sequence[Document] = TOWN) -> dict[str, Any]:
    folder.mkdir()
    embedder = WordEmbedder()
    cut = cut_documents(documents, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=None)
    ref = EmbedderRef(name="words", digest=embedder_digest)
    return write_index(folder, cut, embedder.encode(cut.inputs), embedder=ref).to_json()


def test_it_says_which_indexes_have_no_words(tiers: Tiers, tmp_path: Path) -> None:
    told = without_words(pin(release(tmp_path), tiers).release, tiers)
    assert told.startswith("town has no words")
    assert "rag-stack index build" in told
    assert not without_words(pin(release(tmp_path, retrieval={"mode": "dense"}), tiers).release, tiers)
