"""Backup points: a moment that was, kept from deletion, and nothing left of one that was not finished."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.point import FOLDER, Point, PointCanary, Points
from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ConflictError, InvalidRequestError
from rag_stack.recovery.backup import take
from rag_stack.stores.register import Register
from tests.killed import Child, Death, Place
from tests.promoted import QUESTION, docs, publish_town
from tests.taken import take_there

KILLS = 8


def collected(catalog: Catalog, kind: str = "indexes") -> dict[str, tuple[str, ...]]:
    """What a collection with no patience keeps, and why."""
    found = Retention(catalog, grace_s=0).collect(kind, keep=0, older_than_s=0)  # type: ignore[arg-type]
    return {each.ref.version: each.reasons for each in found.kept}


def test_a_point_names_what_is_promoted_by_digest_and_place(catalog: Catalog) -> None:
    point = take(catalog, label="nightly").point
    pointers = {each.address: (each.version, each.number) for each in point.pointers}
    assert pointers["indexes/docs"] == ("v2", 2)
    assert set(pointers) == {"indexes/docs", "models/generator", "models/words", "releases/demo"}
    for artifact in point.artifacts:
        manifest = catalog.manifest(artifact.ref)
        assert (artifact.digest, artifact.size_bytes, artifact.files) == (
            manifest.digest,
            manifest.size_bytes,
            len(manifest.files),
        )
    assert len(point.artifacts) == 4
    assert (point.label, point.root) == ("nightly", catalog.store.url)
    assert {each.key.split("/")[0] for each in point.objects} == {"stores", "files"}
    assert Points(catalog.store).last() == point
    assert Retention(catalog).leases() == []


def test_it_holds_the_questions_it_is_given_each_once(catalog: Catalog) -> None:
    canary = PointCanary(question=QUESTION, index="docs", expect=("lighthouse.txt",))
    of_the_release = replace(canary, store="docs", top_k=4)
    assert take(catalog, canaries=[canary, canary]).point.canaries == (canary, of_the_release)


def test_what_a_point_names_stays_until_the_point_goes(catalog: Catalog, tmp_path: Path) -> None:
    point = take(catalog).point
    embedder = catalog.resolve("models", "words")
    publish_town(catalog, tmp_path / "later", "v3", embedder=embedder)
    publish_town(catalog, tmp_path / "later", "v4", embedder=embedder)
    catalog.promote(docs("v3"))
    # v2 is neither promoted nor what a rollback goes back to; the release version names it as well.
    assert any(point.name in reason for reason in collected(catalog)["v2"])
    Points(catalog.store).delete(point.name)
    assert not any("backup" in reason for reason in collected(catalog)["v2"])


def test_a_deleted_stores_index_stays_as_long_as_a_point_names_it(catalog: Catalog, tmp_path: Path) -> None:
    embedder = catalog.resolve("models", "words")
    publish_town(catalog, tmp_path / "later", "v3", embedder=embedder)
    point = take(catalog).point
    catalog.withdraw("indexes", "docs")
    assert collected(catalog)["v3"] == (f"in the backup point {point.name}",)
    Points(catalog.store).delete(point.name)
    assert "v3" not in collected(catalog)


def test_something_promoted_meanwhile_makes_it_read_again(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_town(catalog, tmp_path / "later", "v3", embedder=catalog.resolve("models", "words"), promote=False)
    lease = Retention.lease
    moved = threading.Event()

    def promote_then_lease(self: Retention, holder: str, refs: list[ArtifactRef]) -> None:
        # Between the two readings, once: no other seam is there.
        lease(self, holder, refs)
        if not moved.is_set():
            moved.set()
            catalog.promote(docs("v3"))

    monkeypatch.setattr(Retention, "lease", promote_then_lease)
    taken = take(catalog)
    assert taken.attempts == 2
    assert {each.address: each.version for each in taken.point.pointers}["indexes/docs"] == "v3"


def test_who_changes_things_again_and_again_gets_no_point(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Retention.lease

    def change_then_lease(self: Retention, holder: str, refs: list[ArtifactRef]) -> None:
        lease(self, holder, refs)
        Register(catalog.store).create(name="another")

    monkeypatch.setattr(Retention, "lease", change_then_lease)
    with pytest.raises(ConflictError, match="take the point again"):
        take(catalog)
    assert (Points(catalog.store).names(), Retention(catalog).leases()) == ([], [])


def test_two_at_once_take_two_points(catalog: Catalog) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: take(catalog).point, range(2))
    assert sorted((one.name, other.name)) == Points(catalog.store).names()
    assert one.pointers == other.pointers
    assert Retention(catalog).leases() == []


def test_a_node_cache_is_on_the_disk_and_counted(tiers: Tiers) -> None:
    tiers.ensure_local(tiers.resolve("indexes", "docs")).pin.release()
    assert take(tiers.catalog, cache=tiers.cache).cached == 1
    assert list(tiers.cache.directory.glob("artifacts/*/.unsynced")) == []
    assert take(tiers.catalog, cache=NodeCache(tiers.cache.directory / "none")).cached == 0


def test_what_is_not_whole_makes_no_point_and_is_named(catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "store/indexes/docs/v2/passages.arrow"
    file.chmod(0o644)
    os.truncate(file, 10)
    with pytest.raises(ArtifactCorruptError, match=r"'passages.arrow' of 'indexes/docs/v2' has 10 bytes"):
        take(catalog)
    file.unlink()
    with pytest.raises(ArtifactCorruptError, match="is gone"):
        take(catalog)
    assert (Points(catalog.store).names(), Retention(catalog).leases()) == ([], [])


def test_a_damaged_store_is_not_left_out_in_silence(catalog: Catalog) -> None:
    catalog.store.put_bytes("stores/vs_1/store.json", b"{}")
    with pytest.raises(ArtifactCorruptError, match=r"stores/vs_1/store\.json"):
        take(catalog)


class _FullDisk:
    """Fails to write a point, and leaves its part, as a full disk may."""

    def __init__(self, store: ObjectStore) -> None:
        self._create = store.create

    def __call__(self, key: str, data: bytes) -> bool:
        if key.startswith(FOLDER):
            raise ArtifactError(f"cannot write {key!r}: No space left on device; free some space there")
        return self._create(key, data)


def test_without_room_there_is_no_point_and_nothing_is_held(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    # A disk that is full at one moment is not to be had without root.
    monkeypatch.setattr(catalog.store, "create", _FullDisk(catalog.store))
    with pytest.raises(ArtifactError, match="No space left"):
        take(catalog)
    assert (Points(catalog.store).names(), Retention(catalog).leases()) == ([], [])


def test_one_that_is_killed_leaves_a_whole_point_or_none(tiers: Tiers, tmp_path: Path) -> None:
    place = Place(tiers.catalog.store.url, tmp_path / "store", tiers.cache.directory, tmp_path / "store")
    work = partial(take_there, place)
    steps, _ = Child(work, place, Death()).measured()
    points = Points(tiers.catalog.store)
    assert len(points.names()) == 1
    killed = 0
    for step in range(1, steps + 1, max(1, steps // KILLS)):
        before = set(points.names())
        killed += Child(work, place, Death(step=step)).died()
        for name in set(points.names()) - before:
            assert len(points.get(name).artifacts) == 4
    assert killed >= KILLS - 1
    for hold in Retention(tiers.catalog).leases():
        assert hold.owner.startswith("backup-")
    Retention(tiers.catalog, lease_s=0).end_leases(tiers.catalog.store.now())
    assert Retention(tiers.catalog).leases() == [], "what a killed one held runs out"
    taken = take(tiers.catalog).point
    assert taken.name in points.names()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", "JSON object"),
        (b'{"schema_version": 2}', "schema version 2"),
        (b'{"schema_version": 1}', "Field required"),
    ],
)
def test_a_damaged_point_is_named_and_nothing_is_deleted(catalog: Catalog, data: bytes, reason: str) -> None:
    catalog.store.put_bytes(f"{FOLDER}/20260101T000000Z-00000000.json", data)
    with pytest.raises(ArtifactCorruptError, match=reason) as caught:
        Points(catalog.store).last()
    assert f"{FOLDER}/20260101T000000Z-00000000.json" in caught.value.message
    with pytest.raises(ArtifactCorruptError, match="not a backup point"):
        collected(catalog)
    Points(catalog.store).delete("20260101T000000Z-00000000")
    assert collected(catalog)


def test_a_point_under_anothers_name_is_refused(catalog: Catalog) -> None:
    point = take(catalog).point
    catalog.store.put_bytes(f"{FOLDER}/copy.json", point.to_bytes())
    with pytest.raises(ArtifactCorruptError, match="copied by hand"):
        Points(catalog.store).get("copy")


def test_a_point_comes_back_as_it_was_written(catalog: Catalog) -> None:
    point = take(catalog).point
    assert Point.from_bytes(point.to_bytes(), url="here") == point


def test_a_label_has_an_end(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequestError, match="label"):
        take(catalog, label="x" * 201)
