"""Artifacts on a volume that nobody writes to: used where they lie, once they are verified."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.mirror import Mirror, open_mirror
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ConfigError
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, MemoryRecorder

Tree = Callable[..., Path]
CONTENT = b"weights" * 1000


@pytest.fixture
def manifest(catalog: Catalog, tree: Tree) -> Manifest:
    return catalog.publish(tree({"w.bin": CONTENT}), kind="models", name="m", metadata={})


@pytest.fixture
def mirrored(tmp_path: Path, manifest: Manifest) -> Path:
    """The directory of a mirror that holds the model, filled as a cache is, and what of it is the artifact's."""
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store"), MemoryRecorder(), cache=tmp_path / "mirror")
    path = tiers.ensure_local(manifest).path
    tiers.cache.wait_synced()
    return path


@pytest.fixture
def tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiers:
    monkeypatch.setenv("RAG_STACK_MIRROR", f"file://{tmp_path}/mirror")
    return open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())


def test_what_a_mirror_has_is_used_where_it_lies(
    tiers: Tiers, manifest: Manifest, mirrored: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").rename(tmp_path / "gone")
    assert tiers.resolve("models", "m", digest=manifest.digest) == manifest
    local = tiers.ensure_local(manifest)
    assert (local.path, local.source, local.moved) == (mirrored, "mirror", {"mirror": len(CONTENT)})
    assert tiers.cache.find(manifest) is None


def test_its_bytes_are_told_as_the_mirrors(tmp_path: Path, manifest: Manifest, mirrored: Path) -> None:
    recorder = MemoryRecorder()
    cache = NodeCache(tmp_path / "cache")
    tiers = Tiers(Catalog(open_store(f"file://{tmp_path}/store")), cache, recorder, mirror=Mirror(tmp_path / "mirror"))
    tiers.ensure_local(manifest)
    labels = {"kind": "models", "stage": "fetch", "source": "mirror"}
    assert recorder.values(ARTIFACT_LOAD_BYTES, labels) == [len(CONTENT)]


def test_a_damaged_one_is_passed_by_and_left_as_it_is(
    tiers: Tiers, manifest: Manifest, mirrored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (mirrored / "w.bin").chmod(0o644)
    (mirrored / "w.bin").write_bytes(b"W" + CONTENT[1:])
    local = tiers.ensure_local(manifest)
    assert local.source == "object_store"
    assert (local.path / "w.bin").read_bytes() == CONTENT
    assert "the mirror is passed by" in caplog.text
    assert (mirrored / "w.bin").read_bytes() == b"W" + CONTENT[1:]


def test_what_it_has_not_and_a_mirror_that_is_not_there_cost_nothing(tiers: Tiers, manifest: Manifest) -> None:
    assert tiers.ensure_local(manifest).source == "object_store"


def test_it_is_verified_once_a_process(mirrored: Path, manifest: Manifest, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "mirror")
    assert mirror.find(manifest) == mirrored
    (mirrored / "w.bin").chmod(0o644)
    (mirrored / "w.bin").write_bytes(b"")
    assert mirror.find(manifest) == mirrored
    assert Mirror(tmp_path / "mirror").find(manifest) is None


def test_nobody_has_to_be_able_to_write_there(
    sources: Callable[..., object], read_only_cache: Callable[[Callable[[NodeCache], object]], NodeCache]
) -> None:
    source = sources("v1", 5000)

    def fill(cache: NodeCache) -> None:
        cache.insert(source.manifest, source.fill)  # type: ignore[attr-defined]
        cache.wait_synced()

    cache = read_only_cache(fill)
    found = Mirror(cache.directory).find(source.manifest)  # type: ignore[attr-defined]
    assert found is not None
    assert source.is_whole(found)  # type: ignore[attr-defined]


def test_where_it_is_is_a_directory(tmp_path: Path) -> None:
    assert open_mirror(None) is open_mirror("") is None
    found = open_mirror(str(tmp_path))
    assert found is not None
    assert found.directory == tmp_path
    with pytest.raises(ConfigError, match="expected a directory, such as file:///mirror"):
        open_mirror("s3://bucket/models")


def test_one_that_can_be_written_to_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_mirror(str(tmp_path)) is not None
    assert f"{tmp_path} can be written to" in caplog.text
    caplog.clear()
    assert open_mirror("/proc/self") is not None, "where nobody may write"
    assert caplog.text == ""
