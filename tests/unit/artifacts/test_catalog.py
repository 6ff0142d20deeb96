"""What is published stays; only the promoted pointer moves, and only for one writer at a time."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.file_store import FileStore
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    PromotionConflictError,
)

Tree = Callable[..., Path]


def publish(catalog: Catalog, directory: Path, *, version: str | None = None) -> Manifest:
    return catalog.publish(directory, kind="models", name="m", metadata={"task": "generate"}, version=version)


def test_publish_stores_files_and_manifest(catalog: Catalog, store: ObjectStore, tree: Tree) -> None:
    source = tree({"a.txt": b"abc", "sub/ünï #%?.bin": b"\0" * 1000, ".hidden": b"x"})
    manifest = catalog.publish(source, kind="indexes", name="docs", metadata={"n": 1}, version="v1", parent="v0")
    assert [(entry.path, entry.size_bytes) for entry in manifest.files] == [("a.txt", 3), ("sub/ünï #%?.bin", 1000)]
    assert (manifest.ref, manifest.parent) == (ArtifactRef("indexes", "docs", "v1"), "v0")
    assert catalog.manifest(manifest.ref) == manifest
    assert store.read_bytes("indexes/docs/v1/sub/ünï #%?.bin") == b"\0" * 1000
    assert store.list_names("indexes/docs/v1") == ["a.txt", "manifest.json", "sub"]


def test_publishing_the_same_again_changes_nothing(catalog: Catalog, tree: Tree, tmp_path: Path) -> None:
    first = publish(catalog, tree({"a": b"1", "b": b"2"}))
    stored = tmp_path / "store" / str(first.ref) / "manifest.json"
    before = stored.stat()
    assert publish(catalog, tree({"b": b"2", "a": b"1"}, name="copy")) == first
    assert (stored.stat().st_ino, stored.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert catalog.versions("models", "m") == [first.version]


def test_other_content_makes_another_version(catalog: Catalog, tree: Tree) -> None:
    source = tree({"a": b"1"})
    first = publish(catalog, source)
    (source / "a").write_bytes(b"2")
    second = publish(catalog, source)
    third = catalog.publish(source, kind="models", name="m", metadata={"task": "embed"})
    versions = {first.version, second.version, third.version}
    assert len(versions) == 3
    assert catalog.versions("models", "m") == sorted(versions)
    assert catalog.names("models") == ["m"]
    assert catalog.names("indexes") == []


def test_a_published_version_is_never_changed(catalog: Catalog, store: ObjectStore, tree: Tree) -> None:
    publish(catalog, tree({"a": b"1"}), version="v1")
    with pytest.raises(ArtifactExistsError, match="models/m/v1"):
        publish(catalog, tree({"a": b"2"}), version="v1")
    assert store.read_bytes("models/m/v1/a") == b"1"


def test_what_cannot_be_published_is_named(catalog: Catalog, tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no files"):
        publish(catalog, tree({".hidden": b"x"}))
    with pytest.raises(ArtifactError, match="is not a directory"):
        publish(catalog, tmp_path / "absent")
    with pytest.raises(ArtifactError, match="artifact name 'a/b'"):
        catalog.publish(tree({"a": b"1"}), kind="models", name="a/b", metadata={})
    assert not (tmp_path / "store").exists()


def test_a_source_that_changes_under_the_publisher_is_not_published(tmp_path: Path, tree: Tree) -> None:
    class Busy(FileStore):
        def upload(self, path: Path, key: str) -> None:
            super().upload(path, key)
            path.write_bytes(b"changed")

    catalog = Catalog(Busy(tmp_path / "store"))
    with pytest.raises(ArtifactError, match="changed while it was being published"):
        publish(catalog, tree({"a": b"1"}))
    assert catalog.versions("models", "m") == []


def test_a_publisher_killed_halfway_has_published_nothing(
    store: ObjectStore, catalog: Catalog, tree: Tree, tmp_path: Path, processes: ForkContext
) -> None:
    source = tree({"a": b"1", "b": b"2"})
    halfway, never = processes.Event(), processes.Event()

    class Stalling(FileStore):
        def upload(self, path: Path, key: str) -> None:
            if key.endswith("/b"):
                halfway.set()
                never.wait()
            super().upload(path, key)

    stalling = Catalog(Stalling(tmp_path / "store"))
    publisher = processes.Process(target=lambda: publish(stalling, source, version="v1"))
    publisher.start()
    assert halfway.wait(30)
    assert publisher.pid is not None
    os.kill(publisher.pid, signal.SIGKILL)
    publisher.join(30)
    assert store.exists("models/m/v1/a")
    assert catalog.versions("models", "m") == []
    assert catalog.names("models") == []
    with pytest.raises(ArtifactNotFoundError):
        catalog.resolve("models", "m", "v1")

    other = publish(catalog, tree({"a": b"other", "b": b"2"}), version="v1")
    assert catalog.resolve("models", "m", "v1") == other
    assert store.read_bytes("models/m/v1/a") == b"other"


def test_of_racing_publishers_of_one_version_one_wins_whole(
    store: ObjectStore, catalog: Catalog, tree: Tree, processes: ForkContext
) -> None:
    sources = [tree({"a": letter, "b": letter}, name=letter.decode()) for letter in (b"x", b"y", b"z")]
    start, outcomes = processes.Barrier(3), processes.Queue()

    def race(source: Path) -> None:
        start.wait(30)
        try:
            publish(catalog, source, version="v1")
            outcomes.put("published")
        except ArtifactExistsError:
            outcomes.put("exists")

    publishers = [processes.Process(target=race, args=(source,)) for source in sources]
    for publisher in publishers:
        publisher.start()
    found = sorted(outcomes.get(timeout=60) for _ in publishers)
    for publisher in publishers:
        publisher.join(30)
    assert found == ["exists", "exists", "published"]
    assert store.read_bytes("models/m/v1/a") == store.read_bytes("models/m/v1/b")
    assert publish(catalog, tree({}, name=store.read_bytes("models/m/v1/a").decode()), version="v1").version == "v1"


def test_on_a_store_without_locks_the_loser_of_a_race_changes_nothing(tmp_path: Path, tree: Tree) -> None:
    """The other publisher begins after the first had seen no manifest, and is done before that begins to upload."""
    first, second = tree({"a": b"first"}, name="one"), tree({"a": b"second"}, name="two")

    class Late(FileStore):
        def exclusive(self, key: str) -> AbstractContextManager[bool]:
            publish(Catalog(Unlocked(tmp_path / "store")), second, version="v1")
            return nullcontext(enter_result=False)

    class Unlocked(FileStore):
        def exclusive(self, key: str) -> AbstractContextManager[bool]:
            return nullcontext(enter_result=False)

    with pytest.raises(ArtifactExistsError, match="published with other content"):
        publish(Catalog(Late(tmp_path / "store")), first, version="v1")
    assert (tmp_path / "store/models/m/v1/a").read_bytes() == b"second"
    assert not (tmp_path / "store/models/m/v1/.publishing").exists()


def test_two_publishers_of_the_same_get_the_same_manifest(tmp_path: Path, tree: Tree) -> None:
    source = tree({"a": b"1"})

    class Late(FileStore):
        def exclusive(self, key: str) -> AbstractContextManager[bool]:
            catalog = Catalog(FileStore(tmp_path / "store"))
            catalog.publish(source, kind="models", name="m", metadata={}, version="v1", parent="v0")
            return super().exclusive(key)

    late = Catalog(Late(tmp_path / "store")).publish(source, kind="models", name="m", metadata={}, version="v1")
    assert late == Catalog(FileStore(tmp_path / "store")).manifest(late.ref)
    assert late.parent == "v0"


def test_what_an_older_release_published_is_published_again(catalog: Catalog, store: ObjectStore, tree: Tree) -> None:
    old = {"schema_version": 1, "kind": "models", "name": "m", "version": "v1", "files": [], "metadata": {}}
    store.put_bytes("models/m/v1/manifest.json", json.dumps(old).encode())
    pointer = {"version": "v1", "digest": "sha256:" + "0" * 64, "previous": None, "promoted_at": "2026-01-01T00:00:00"}
    store.put_bytes("models/m/PROMOTED", json.dumps(pointer).encode())
    with pytest.raises(ArtifactOutdatedError, match=r"models/m/v1/manifest.json: .* an older rag_stack; publish and"):
        catalog.resolve("models", "m")
    with pytest.raises(ArtifactExistsError, match=r"by an older rag_stack, .* publish under another version"):
        publish(catalog, tree({"a": b"1"}), version="v1")
    assert catalog.readable("models", "m") is None
    manifest = publish(catalog, tree({"a": b"1"}))
    assert catalog.promote(manifest.ref).previous == "v1"
    assert catalog.resolve("models", "m") == catalog.readable("models", "m") == manifest


def test_promote_moves_the_pointer_and_remembers(catalog: Catalog, tree: Tree) -> None:
    one, two = (publish(catalog, tree({"a": text}), version=v) for v, text in (("v1", b"1"), ("v2", b"2")))
    assert catalog.promoted("models", "m") is None
    first = catalog.promote(one.ref, expected_version=None)
    assert (first.version, first.previous, first.digest) == ("v1", None, one.digest)
    assert datetime.fromisoformat(first.promoted_at).utcoffset() == timedelta(0)
    second = catalog.promote(two.ref, expected_version="v1")
    assert (second.version, second.previous) == ("v2", "v1")
    assert catalog.promoted("models", "m") == second
    assert catalog.resolve("models", "m", None) == two
    assert catalog.resolve("models", "m", "v1") == one
    rolled_back = catalog.promote(ArtifactRef("models", "m", "v1"))
    assert (rolled_back.version, rolled_back.previous) == ("v1", "v2")


def test_promoting_again_keeps_the_way_back(catalog: Catalog, tree: Tree) -> None:
    one, two = (publish(catalog, tree({"a": text}), version=v) for v, text in (("v1", b"1"), ("v2", b"2")))
    catalog.promote(one.ref)
    second = catalog.promote(two.ref)
    assert catalog.promote(two.ref) == second
    assert catalog.versions("models", "m") == ["v1", "v2"]


@pytest.mark.parametrize("expected", [None, "v2", "v0"])
def test_promote_refuses_when_something_else_is_promoted(catalog: Catalog, tree: Tree, expected: str | None) -> None:
    one, two = (publish(catalog, tree({"a": text}), version=v) for v, text in (("v1", b"1"), ("v2", b"2")))
    pointer = catalog.promote(one.ref)
    with pytest.raises(PromotionConflictError, match="'v1' promoted"):
        catalog.promote(two.ref, expected_version=expected)
    assert catalog.promoted("models", "m") == pointer


def test_only_what_is_published_is_promoted(catalog: Catalog, tree: Tree) -> None:
    publish(catalog, tree({"a": b"1"}), version="v1")
    with pytest.raises(ArtifactNotFoundError, match=r"models/m/v9.*published versions of 'm': v1"):
        catalog.promote(ArtifactRef("models", "m", "v9"))
    assert catalog.promoted("models", "m") is None


def test_what_is_not_there_is_told_with_what_is(catalog: Catalog, tree: Tree) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"no models are published there.*rag-stack model import"):
        catalog.resolve("models", "m", None)
    with pytest.raises(ArtifactNotFoundError, match="rag-stack index build"):
        catalog.resolve("indexes", "docs", "v1")
    publish(catalog, tree({"a": b"1"}), version="v1")
    with pytest.raises(ArtifactNotFoundError, match="published but not promoted: v1"):
        catalog.resolve("models", "m", None)
    with pytest.raises(ArtifactNotFoundError, match="published models: m; publish with `rag-stack model import`"):
        catalog.resolve("models", "other", None)


def test_a_manifest_changed_after_promotion_is_found(catalog: Catalog, store: ObjectStore, tree: Tree) -> None:
    manifest = publish(catalog, tree({"a": b"1"}), version="v1")
    pointer = catalog.promote(manifest.ref)
    changed = {**json.loads(manifest.to_bytes()), "metadata": {"task": "embed"}}
    store.put_bytes("models/m/v1/manifest.json", json.dumps(changed).encode())
    found = catalog.manifest(manifest.ref).digest
    with pytest.raises(ArtifactCorruptError) as failure:
        catalog.resolve("models", "m", None)
    assert found in failure.value.message
    assert pointer.digest in failure.value.message


@pytest.mark.parametrize("pointer", [b"", b"v1", b"{}", b'{"version": 1, "digest": "x"}'])
def test_a_damaged_pointer_is_named(catalog: Catalog, store: ObjectStore, pointer: bytes) -> None:
    store.put_bytes("models/m/PROMOTED", pointer)
    with pytest.raises(ArtifactCorruptError, match="models/m/PROMOTED"):
        catalog.resolve("models", "m", None)


def test_a_manifest_in_the_wrong_place_is_found(catalog: Catalog, store: ObjectStore, tree: Tree) -> None:
    manifest = publish(catalog, tree({"a": b"1"}), version="v1")
    store.put_bytes("models/m/v2/manifest.json", manifest.to_bytes())
    with pytest.raises(ArtifactCorruptError, match="is the manifest of 'models/m/v1'"):
        catalog.resolve("models", "m", "v2")


def test_a_read_only_store_is_read_and_says_why_it_is_not_written(read_only_directory: Path) -> None:
    catalog = Catalog(open_store(f"file://{read_only_directory}"))
    assert catalog.names("models") == []
    with pytest.raises(ArtifactError, match=r"cannot \w+ 'file://.*: Permission denied; give this user access"):
        catalog.store.put_bytes("models/m/v1/a", b"1")
    with pytest.raises(ArtifactError, match=r"cannot \w+ 'file://.*: Permission denied; give this user access"):
        catalog.store.compare_and_set("models/m/PROMOTED", b"1", expected=None)
