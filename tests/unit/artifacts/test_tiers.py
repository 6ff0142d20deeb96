"""From the object store to this node: once, verified, measured."""

from collections.abc import Callable
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ConfigError
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, ARTIFACT_LOAD_SECONDS, MemoryRecorder

Tree = Callable[..., Path]
CONTENT = b"weights" * 1000


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
def tiers(tmp_path: Path, recorder: MemoryRecorder) -> Tiers:
    return open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), recorder)


@pytest.fixture
def manifest(tiers: Tiers, tree: Tree) -> Manifest:
    source = tree({"config.json": b"{}", "w.bin": CONTENT})
    return tiers.catalog.publish(source, kind="models", name="m", metadata={})


def labels(source: str) -> dict[str, str]:
    return {"kind": "models", "stage": "fetch", "source": source}


def test_the_first_load_reads_the_store_and_the_next_the_cache(
    tiers: Tiers, manifest: Manifest, recorder: MemoryRecorder
) -> None:
    first, second = tiers.ensure_local(manifest), tiers.ensure_local(manifest)
    assert (first.source, second.source) == ("object_store", "cache")
    assert first.path == second.path
    assert (first.path / "w.bin").read_bytes() == CONTENT
    assert first.size_bytes == len(CONTENT) + 2
    for loaded in (first, second):
        assert recorder.values(ARTIFACT_LOAD_SECONDS, labels(loaded.source)) == [loaded.seconds]
        assert recorder.values(ARTIFACT_LOAD_BYTES, labels(loaded.source)) == [loaded.size_bytes]


def test_a_cached_artifact_needs_no_store(tiers: Tiers, manifest: Manifest, tmp_path: Path) -> None:
    tiers.ensure_local(manifest)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert (tiers.ensure_local(manifest).path / "w.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"W" + CONTENT[1:]])
def test_a_damaged_object_is_named_with_both_digests(
    tiers: Tiers, manifest: Manifest, tmp_path: Path, recorder: MemoryRecorder, damaged: bytes
) -> None:
    (tmp_path / "store" / str(manifest.ref) / "w.bin").write_bytes(damaged)
    (expected,) = manifest.files[1].chunks
    size = rf"has {len(damaged)} bytes in file://.*, expected {len(CONTENT)};"
    digests = rf"digest \w{{64}} at offset 0, expected {len(CONTENT)} bytes with {expected} in"
    with pytest.raises(ArtifactCorruptError, match=f"'w.bin'.*({size}|{digests}).*again"):
        tiers.ensure_local(manifest)
    assert tiers.cache.find(manifest) is None
    assert recorder.values(ARTIFACT_LOAD_SECONDS, labels("object_store")) == []


def test_a_lost_object_is_named(tiers: Tiers, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "store" / str(manifest.ref) / "w.bin").unlink()
    with pytest.raises(ArtifactCorruptError, match=r"'w.bin' of 'models/m/.*' is gone from file://"):
        tiers.ensure_local(manifest)


def test_of_many_processes_one_reads_the_store(tiers: Tiers, manifest: Manifest, processes: ForkContext) -> None:
    start, sources = processes.Barrier(4), processes.Queue()

    def load() -> None:
        start.wait(30)
        sources.put(tiers.ensure_local(manifest).source)

    loaders = [processes.Process(target=load) for _ in range(4)]
    for loader in loaders:
        loader.start()
    found = sorted(sources.get(timeout=60) for _ in loaders)
    for loader in loaders:
        loader.join(30)
    assert found == ["cache", "cache", "cache", "object_store"]


def test_the_environment_says_what_the_cache_may_hold(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pod's does whose cache is a part of a disk that others fill, too."""
    config = ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache", cache_limit_bytes=10**9)
    monkeypatch.setenv("RAG_STACK_CACHE_LIMIT_BYTES", "1000")
    with pytest.raises(ArtifactError, match=r"1,?000"):
        open_tiers(config, MemoryRecorder()).ensure_local(manifest)
    monkeypatch.setenv("RAG_STACK_CACHE_LIMIT_BYTES", "40Gi")
    with pytest.raises(ConfigError, match="'40Gi'; expected a number of bytes"):
        open_tiers(config, MemoryRecorder())


def test_a_root_that_nobody_can_write_to_is_enough_to_start_from(ordinary_directory: Path) -> None:
    """As an engine pod has it where artifacts lie on a shared volume."""
    config = ArtifactsConfig(root=f"file://{ordinary_directory}/store", cache=ordinary_directory / "cache")
    (ordinary_directory / "source").mkdir()
    (ordinary_directory / "source" / "w.bin").write_bytes(CONTENT)
    writer = open_tiers(config, MemoryRecorder()).catalog
    manifest = writer.publish(ordinary_directory / "source", kind="models", name="m", metadata={})
    writer.promote(manifest.ref)
    store = ordinary_directory / "store"
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        tiers = open_tiers(config, MemoryRecorder())
        local = tiers.ensure_local(tiers.resolve("models", "m"))
        assert (local.path / "w.bin").read_bytes() == CONTENT
        with pytest.raises(ArtifactError):
            tiers.catalog.store.put_bytes("x", b"")
    finally:
        for folder in folders:
            folder.chmod(0o755)
