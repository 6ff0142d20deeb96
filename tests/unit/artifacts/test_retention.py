"""What nobody needs goes, what somebody needs stays, whoever comes meanwhile."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.file_store import FileStore
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.artifacts.retention import Collected, Retention, seconds_of
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    InvalidRequestError,
    PromotionConflictError,
)

Tree = Callable[..., Path]
DAY_S = 86400.0
OLD_S = 10 * DAY_S


@pytest.fixture
def retention(catalog: Catalog) -> Retention:
    return Retention(catalog)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def refs(catalog: Catalog, tree: Tree, directory: Path) -> list[ArtifactRef]:
    """v1 to v8, published ten days ago by the store's clock."""
    return [_publish(catalog, tree, directory, f"v{number}") for number in range(1, 9)]


def _publish(catalog: Catalog, tree: Tree, directory: Path, version: str) -> ArtifactRef:
    source = tree({"a": version.encode(), "sub/b": b"b" * 100}, name=f"source-{version}")
    ref = catalog.publish(source, kind="indexes", name="docs", metadata={}, version=version).ref
    age(directory / str(ref), OLD_S)
    return ref


def age(directory: Path, seconds: float) -> None:
    """Let all files below a directory be so much older."""
    for folder, _, names in os.walk(directory):
        for name in names:
            status = (Path(folder) / name).stat()
            os.utime(Path(folder) / name, (status.st_atime - seconds, status.st_mtime - seconds))


def kept(collected: Collected) -> dict[str, tuple[str, ...]]:
    return {each.ref.version: each.reasons for each in collected.kept}


def gone(collected: Collected) -> list[str]:
    return [each.ref.version for each in collected.deleted]


def test_what_is_promoted_and_the_way_back_stay(
    catalog: Catalog, retention: Retention, refs: list[ArtifactRef], directory: Path
) -> None:
    for ref in refs[:4]:
        catalog.promote(ref)
    collected = retention.collect("indexes", "docs", keep=0)
    assert kept(collected) == {"v3": ("what a rollback goes back to",), "v4": ("promoted",)}
    assert gone(collected) == ["v1", "v2", "v5", "v6", "v7", "v8"]
    assert collected.freed_bytes == sum(each.size_bytes for each in collected.deleted) > 600
    assert catalog.versions("indexes", "docs") == ["v3", "v4"]
    assert sorted(path.name for path in (directory / "indexes/docs").iterdir()) == ["PROMOTED", "v3", "v4"]
    assert json.loads((directory / "indexes/docs/PROMOTED").read_bytes())["condemned"] == {}
    assert catalog.rollback("indexes", "docs").version == "v3"
    assert len(catalog.history("indexes", "docs")) == 5


def test_the_versions_promoted_last_stay(catalog: Catalog, retention: Retention, refs: list[ArtifactRef]) -> None:
    for ref in (*refs[:6], refs[4], refs[5]):
        catalog.promote(ref)
    assert gone(retention.collect("indexes", "docs", keep=4)) == ["v1", "v2", "v7", "v8"]


def test_the_versions_promoted_last_are_found_in_the_archive(
    catalog: Catalog, retention: Retention, refs: list[ArtifactRef]
) -> None:
    catalog.promote(refs[0])
    for number in range(120):
        catalog.promote(refs[1 + number % 2])
    assert gone(retention.collect("indexes", "docs", keep=3)) == ["v4", "v5", "v6", "v7", "v8"]


def test_a_dry_run_deletes_nothing(catalog: Catalog, retention: Retention, refs: list[ArtifactRef]) -> None:
    catalog.promote(refs[7])
    foreseen = retention.collect("indexes", "docs", dry_run=True)
    assert foreseen.dry_run
    assert catalog.versions("indexes", "docs") == [ref.version for ref in refs]
    done = retention.collect("indexes", "docs")
    assert foreseen.verdicts == done.verdicts
    assert gone(done) == [ref.version for ref in refs[:7]]


def test_what_is_young_stays(catalog: Catalog, retention: Retention, tree: Tree, directory: Path) -> None:
    refs = [_publish(catalog, tree, directory, version) for version in ("v1", "v2", "v3")]
    age(directory / str(refs[1]), 1800 - OLD_S)
    age(directory / str(refs[2]), 3 * DAY_S - OLD_S)
    assert kept(retention.collect("indexes", "docs", dry_run=True)) == {
        "v2": ("younger than 7 d",),
        "v3": ("younger than 7 d",),
    }
    # A build that is about to promote what it has published is never hurried.
    assert kept(retention.collect("indexes", "docs", older_than_s=0)) == {"v2": ("younger than 1 h",)}


def test_ages_are_by_the_stores_clock(
    catalog: Catalog, tree: Tree, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is a month ahead does not think that everything is old."""
    _publish(catalog, tree, directory, "v1")
    age(directory, -OLD_S)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert gone(Retention(catalog).collect("indexes", "docs")) == []


def test_what_a_release_pins_stays(catalog: Catalog, retention: Retention, refs: list[ArtifactRef]) -> None:
    retention.pin("town", [refs[0], refs[1]])
    retention.pin("town", [refs[1], refs[2]])
    assert [(pin.owner, sorted(pin.refs)) for pin in retention.pins()] == [
        ("town", ["indexes/docs/v2", "indexes/docs/v3"])
    ]
    assert kept(retention.collect("indexes", "docs")) == {
        "v2": ("pinned by release town",),
        "v3": ("pinned by release town",),
    }
    retention.unpin("town")
    retention.unpin("town")
    assert gone(retention.collect("indexes")) == ["v2", "v3"]


def test_a_release_cannot_pin_what_is_gone(
    catalog: Catalog, retention: Retention, refs: list[ArtifactRef], store: ObjectStore
) -> None:
    retention.collect("indexes", "docs")
    with pytest.raises(ArtifactNotFoundError, match="indexes/docs/v1"):
        retention.pin("town", [refs[0]])
    # Nor does that pin hold what a killed deletion leaves.
    store.put_bytes("indexes/docs/v1/a", b"a")
    assert gone(Retention(catalog, grace_s=-1).collect("indexes", "docs")) == ["v1"]
    with pytest.raises(ArtifactError, match="'a/b' cannot own pins"):
        retention.pin("a/b", [])


def test_what_is_mapped_somewhere_stays_until_the_lease_runs_out(
    catalog: Catalog, retention: Retention, refs: list[ArtifactRef], directory: Path
) -> None:
    retention.lease("replica-1", [refs[0], refs[1]])
    retention.lease("replica-2", [refs[1]])
    assert kept(retention.collect("indexes", "docs")) == {
        "v1": ("in use by replica-1",),
        "v2": ("in use by replica-1", "in use by replica-2"),
    }
    age(directory / "leases", 2 * DAY_S)
    retention.lease("replica-2", [refs[1]])
    assert kept(retention.collect("indexes", "docs", dry_run=True)) == {"v2": ("in use by replica-2",)}
    assert [hold.owner for hold in retention.leases()] == ["replica-1", "replica-2"]
    assert kept(retention.collect("indexes", "docs")) == {"v2": ("in use by replica-2",)}
    assert [hold.owner for hold in retention.leases()] == ["replica-2"]
    retention.release("replica-2")
    assert gone(retention.collect("indexes", "docs")) == ["v2"]


def test_of_what_is_promoted_nothing_goes_even_without_its_manifest(
    catalog: Catalog, refs: list[ArtifactRef], store: ObjectStore
) -> None:
    for ref in refs[:2]:
        catalog.promote(ref)
    store.delete("indexes/docs/v2/manifest.json")
    store.delete("indexes/docs/v1/manifest.json")
    collected = Retention(catalog, grace_s=0).collect("indexes", "docs", older_than_s=0)
    # What a rollback would have gone back to is no version any more.
    assert kept(collected) == {"v2": ("promoted",)}


def test_a_damaged_pin_stops_everything(retention: Retention, refs: list[ArtifactRef], store: ObjectStore) -> None:
    store.put_bytes("pins/town.json", b"{}")
    with pytest.raises(ArtifactCorruptError, match=r"pins/town.json does not say which versions are needed"):
        retention.collect("indexes", "docs")


def test_a_model_that_an_index_was_built_with_stays(
    catalog: Catalog, retention: Retention, tree: Tree, directory: Path
) -> None:
    models = [
        catalog.publish(tree({"w": text}), kind="models", name="words", metadata={}, version=text.decode())
        for text in (b"m1", b"m2", b"m3")
    ]
    catalog.promote(models[2].ref)
    built = {"embedder": {"name": "words", "digest": models[0].digest}}
    catalog.publish(tree({"i": b"i"}, name="index"), kind="indexes", name="docs", metadata=built, version="i1")
    age(directory, OLD_S)
    collected = retention.collect("models", keep=0)
    assert kept(collected) == {"m1": ("indexes/docs/i1 was built with it",), "m3": ("promoted",)}


def test_a_promotion_before_the_mark_keeps_the_version(
    catalog: Catalog, refs: list[ArtifactRef], directory: Path
) -> None:
    """The collector has found that nobody needs v1; then it is promoted; then the collector marks it."""

    class Late(FileStore):
        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            if b'"condemned":{"v1"' in data and catalog.promoted("indexes", "docs") is None:
                catalog.promote(refs[0])
            super().compare_and_set(key, data, expected=expected)

    collected = Retention(Catalog(Late(directory))).collect("indexes", "docs", keep=0)
    assert kept(collected) == {"v1": ("promoted",)}
    assert catalog.resolve("indexes", "docs").version == "v1"


@pytest.mark.parametrize("at", ["manifest.json", "a", "sub/b", ".publishing"])
def test_a_promotion_after_the_mark_is_refused(
    catalog: Catalog, refs: list[ArtifactRef], directory: Path, at: str
) -> None:
    """At every step of the deletion; afterwards the version is just not there."""
    refused = []

    class Interrupted(FileStore):
        def delete(self, key: str) -> None:
            if key == f"indexes/docs/v1/{at}":
                with pytest.raises(PromotionConflictError, match="docs/v1' is being deleted by `rag-stack index gc`"):
                    catalog.promote(refs[0])
                refused.append(key)
            super().delete(key)

    catalog.promote(refs[7])
    assert "v1" in gone(Retention(Catalog(Interrupted(directory))).collect("indexes", "docs"))
    assert refused == [f"indexes/docs/v1/{at}"]
    with pytest.raises(ArtifactNotFoundError):
        catalog.promote(refs[0])
    assert catalog.resolve("indexes", "docs").version == "v8"


def test_a_promotion_that_has_read_the_manifest_before_the_deletion_fails(
    catalog: Catalog, refs: list[ArtifactRef], directory: Path
) -> None:
    """The whole deletion, mark and unmark, lies between the promoter's look and its write."""
    catalog.promote(refs[7])

    class Slow(FileStore):
        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            if catalog.store.exists("indexes/docs/v1/manifest.json"):
                assert "v1" in gone(Retention(catalog).collect("indexes", "docs"))
            super().compare_and_set(key, data, expected=expected)

    with pytest.raises(ArtifactNotFoundError, match="docs/v1"):
        Catalog(Slow(directory)).promote(refs[0])
    assert catalog.resolve("indexes", "docs").version == "v8"


def test_other_deletions_do_not_disturb_a_promotion(catalog: Catalog, refs: list[ArtifactRef], directory: Path) -> None:
    catalog.promote(refs[7])
    retention = Retention(catalog)
    retention.pin("town", [refs[6]])

    class Slow(FileStore):
        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            if catalog.store.exists("indexes/docs/v1/manifest.json"):
                retention.collect("indexes", "docs")
            super().compare_and_set(key, data, expected=expected)

    assert Catalog(Slow(directory)).promote(refs[6], expected_version="v8").number == 2


def test_a_pin_after_the_mark_is_seen_or_told(
    catalog: Catalog, retention: Retention, refs: list[ArtifactRef], directory: Path
) -> None:
    class Interrupted(FileStore):
        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            super().compare_and_set(key, data, expected=expected)
            if b'"condemned":{"v1"' in data:
                # Marked, and the collector has not yet looked again: it will see the pin, and so will its owner.
                with pytest.raises(PromotionConflictError, match="release 'town' holds it now, so start again"):
                    retention.pin("town", [refs[0]])

    collected = Retention(Catalog(Interrupted(directory))).collect("indexes", "docs")
    assert kept(collected) == {"v1": ("pinned by release town",)}
    retention.pin("town", [refs[0]])
    catalog.promote(refs[0])


def test_what_a_killed_publish_left_goes_when_no_publisher_is_there(
    catalog: Catalog, retention: Retention, store: ObjectStore, directory: Path
) -> None:
    store.put_bytes("indexes/docs/v1/a", b"a" * 50)
    store.put_bytes("indexes/docs/v1/.publishing", b"claim")
    assert kept(retention.collect("indexes", "docs")) == {"v1": ("left by a publish, and younger than 1 h",)}
    age(directory, 2 * 3600)
    with store.exclusive("indexes/docs/v1/manifest.json"):
        assert kept(retention.collect("indexes", "docs")) == {"v1": ("being published or deleted by another process",)}
    collected = retention.collect("indexes")
    assert [(each.ref.version, each.published, each.size_bytes) for each in collected.deleted] == [("v1", False, 55)]
    assert not (directory / "indexes/docs/v1").exists()


class Unlocked(FileStore):
    """As S3: nobody knows who is alive."""

    has_locks = False

    def exclusive(self, key: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        return ObjectStore.exclusive(self, key, wait=wait)


def test_without_locks_what_a_killed_publish_left_waits_a_day(directory: Path) -> None:
    store = Unlocked(directory)
    retention = Retention(Catalog(store))
    store.put_bytes("indexes/docs/v1/a", b"a" * 50)
    store.put_bytes("indexes/docs/v1/.publishing", b"claim")
    age(directory, 2 * 3600)
    assert kept(retention.collect("indexes", "docs")) == {
        "v1": ("perhaps being published", "left by a publish, and younger than 1 d")
    }
    age(directory, DAY_S)
    assert gone(retention.collect("indexes", "docs")) == ["v1"]


@pytest.mark.parametrize("store_type", [FileStore, Unlocked])
def test_a_publisher_that_comes_while_its_version_is_deleted(
    store_type: type[FileStore], directory: Path, tree: Tree
) -> None:
    """It is published whole in the end, or its publisher is told."""
    catalog = Catalog(store_type(directory))
    ref = _publish(catalog, tree, directory, "v1")
    outcomes = []

    class Interrupted(store_type):  # type: ignore[misc,valid-type]
        def delete(self, key: str) -> None:
            super().delete(key)
            if key.endswith("/manifest.json"):
                if self.has_locks:
                    assert self._is_held()
                    return
                with pytest.raises(PromotionConflictError, match="is being deleted by"):
                    _publish(catalog, tree, directory, "v1")
                outcomes.append("told")

        def _is_held(self) -> bool:
            with pytest.raises(ArtifactError, match="is locked by another process"):
                catalog.store.exclusive("indexes/docs/v1/manifest.json", wait=False).__enter__()
            outcomes.append("held out")
            return True

    assert gone(Retention(Catalog(Interrupted(directory))).collect("indexes", "docs")) == ["v1"]
    assert len(outcomes) == 1
    _publish(catalog, tree, directory, "v1")
    catalog.promote(ref)
    assert catalog.store.read_bytes("indexes/docs/v1/sub/b") == b"b" * 100


def test_without_locks_a_publisher_that_was_there_first_is_seen(directory: Path, tree: Tree) -> None:
    catalog = Catalog(Unlocked(directory))
    source = tree({"a": b"1", "b": b"2"})
    seen = []

    class Slow(Unlocked):
        def upload(self, path: Path, key: str) -> None:
            super().upload(path, key)
            if key.endswith("/a"):
                # All of it looks a week old, but for the claim.
                age(directory / "indexes/docs/v1/a", 7 * DAY_S)
                seen.append(kept(Retention(catalog, grace_s=0).collect("indexes", "docs", older_than_s=0)))

    Catalog(Slow(directory)).publish(source, kind="indexes", name="docs", metadata={}, version="v1")
    assert list(seen[0]) == ["v1"]
    assert catalog.versions("indexes", "docs") == ["v1"]


@pytest.mark.parametrize("step", range(1, 8))
def test_the_next_run_goes_on_with_what_a_killed_one_began(
    catalog: Catalog, refs: list[ArtifactRef], directory: Path, processes: ForkContext, step: int
) -> None:
    catalog.promote(refs[7])

    class Dying(FileStore):
        left = step

        def _step(self) -> None:
            self.left -= 1
            if self.left == 0:
                os._exit(9)

        def delete(self, key: str) -> None:
            self._step()
            super().delete(key)

        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            super().compare_and_set(key, data, expected=expected)
            self._step()

    child = processes.Process(target=lambda: Retention(Catalog(Dying(directory))).collect("indexes", "docs"))
    child.start()
    child.join(30)
    assert child.exitcode == 9
    assert catalog.resolve("indexes", "docs").version == "v8"
    for version in catalog.versions("indexes", "docs"):
        catalog.store.read_bytes(f"indexes/docs/{version}/sub/b")
    Retention(catalog).collect("indexes", "docs")
    left = Retention(catalog, grace_s=0).collect("indexes", "docs", older_than_s=0)
    assert catalog.versions("indexes", "docs") == ["v8"]
    assert gone(left) == [] or catalog.store.entries("indexes/docs/v1") == []
    assert json.loads((directory / "indexes/docs/PROMOTED").read_bytes())["condemned"] == {}


def test_a_killed_deletion_does_not_hold_up_a_publisher(
    catalog: Catalog, refs: list[ArtifactRef], directory: Path, processes: ForkContext, tree: Tree
) -> None:
    class Dying(FileStore):
        def delete(self, key: str) -> None:
            os._exit(9)

    child = processes.Process(target=lambda: Retention(Catalog(Dying(directory))).collect("indexes", "docs"))
    child.start()
    child.join(30)
    with pytest.raises(PromotionConflictError, match="is being deleted"):
        catalog.promote(refs[0])
    # Under the lock it is sure that nobody deletes it any more.
    _publish(catalog, tree, directory, "v1")
    assert catalog.promote(refs[0]).version == "v1"


def test_without_locks_a_mark_is_taken_over_when_its_run_must_be_dead(
    catalog: Catalog, refs: list[ArtifactRef], directory: Path, processes: ForkContext
) -> None:
    class Dying(Unlocked):
        def delete(self, key: str) -> None:
            os._exit(9)

    child = processes.Process(target=lambda: Retention(Catalog(Dying(directory))).collect("indexes", "docs"))
    child.start()
    child.join(30)
    retention = Retention(Catalog(Unlocked(directory)))
    assert list(kept(retention.collect("indexes", "docs"))) == ["v1"]
    _, data = catalog.state("indexes", "docs")
    mark = json.loads(data or b"{}")
    mark["condemned"]["v1"]["at"] = "2020-01-01T00:00:00+00:00"
    catalog.store.compare_and_set("indexes/docs/PROMOTED", json.dumps(mark).encode(), expected=data)
    assert gone(retention.collect("indexes", "docs")) == ["v1"]
    assert catalog.state("indexes", "docs")[0].condemned == {}


def test_a_store_that_cannot_compare_deletes_nothing(tree: Tree) -> None:
    store = open_store("memory://retention")
    catalog = Catalog(store)
    catalog.publish(tree({"a": b"1"}), kind="indexes", name="docs", metadata={}, version="v1")
    with pytest.raises(ArtifactError, match=r"only file:// and s3:// can"):
        Retention(catalog, grace_s=-1, leavings_s=-1).collect("indexes", "docs", older_than_s=0)
    assert catalog.versions("indexes", "docs") == ["v1"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30m", 1800), ("1.5h", 5400), ("7D", 7 * DAY_S), (" 2w", 14 * DAY_S)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "7 days", "1e9", "9" * 30, "٣d"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is no duration"):
        seconds_of(text)


@pytest.mark.parametrize("older_than_s", [-1.0, float("inf"), 1e300, seconds_of("999999999w")])
def test_an_age_that_nothing_has_is_refused(catalog: Catalog, older_than_s: float) -> None:
    with pytest.raises(InvalidRequestError, match="older_than 0 to 3153600000 seconds"):
        Retention(catalog).collect("indexes", "docs", older_than_s=older_than_s)
