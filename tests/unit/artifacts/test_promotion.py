"""The history of promotions: complete, in order, and the way back along it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.file_store import FileStore
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.promotion import ARCHIVE_PROMOTIONS, POINTER_PROMOTIONS, PointerState
from rag_stack.errors import ArtifactCorruptError, InvalidRequestError, PromotionConflictError, RollbackError

Tree = Callable[..., Path]
DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def versions(catalog: Catalog, tree: Tree) -> list[ArtifactRef]:
    """v1 to v4, published."""
    return [
        catalog.publish(tree({"a": f"{n}".encode()}), kind="indexes", name="docs", metadata={}, version=f"v{n}").ref
        for n in range(1, 5)
    ]


def test_a_promotion_is_remembered_with_who_and_why(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    catalog.promote(versions[0], by="ann", reason="first")
    pointer = catalog.promote(versions[1], by="bob", reason="newer", forced=True)
    assert (pointer.number, pointer.by, pointer.reason, pointer.forced, pointer.previous) == (
        2, "bob", "newer", True, "v1",
    )  # fmt: skip
    history = catalog.history("indexes", "docs")
    assert [(each.number, each.version, each.by, each.reason, each.forced) for each in history] == [
        (1, "v1", "ann", "first", False),
        (2, "v2", "bob", "newer", True),
    ]
    assert catalog.promoted("indexes", "docs") == pointer
    assert catalog.history("indexes", "docs", last=1) == history[1:]
    assert catalog.history("indexes", "other") == []


def test_who_promotes_is_the_user_where_nobody_says(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    user, _, host = catalog.promote(versions[0]).by.partition("@")
    assert user
    assert host


def test_promoting_what_is_promoted_is_no_promotion(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    first = catalog.promote(versions[0], reason="first")
    assert catalog.promote(versions[0], reason="again") == first
    assert len(catalog.history("indexes", "docs")) == 1


def test_what_is_too_long_to_be_kept_is_refused(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    with pytest.raises(InvalidRequestError, match="`reason` has 1001 characters"):
        catalog.promote(versions[0], reason="x" * 1001)
    assert catalog.promoted("indexes", "docs") is None


def test_rolling_back_goes_back_along_the_promotions(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    for ref in versions[:3]:
        catalog.promote(ref)
    second = catalog.rollback("indexes", "docs", by="ann", reason="v3 is wrong")
    assert (second.version, second.previous, second.restores, second.by) == ("v2", "v1", 2, "ann")
    first = catalog.rollback("indexes", "docs")
    assert (first.version, first.previous, first.restores, first.number) == ("v1", None, 1, 5)
    with pytest.raises(RollbackError, match="'v1' promoted, and nothing was promoted before it"):
        catalog.rollback("indexes", "docs")
    # What comes next stands on what was gone back to.
    assert catalog.promote(versions[3]).previous == "v1"
    assert catalog.rollback("indexes", "docs").version == "v1"
    assert [each.version for each in catalog.history("indexes", "docs")] == ["v1", "v2", "v3", "v2", "v1", "v4", "v1"]


def test_rolling_back_to_a_version_further_back(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    for ref in versions:
        catalog.promote(ref)
    assert catalog.rollback("indexes", "docs", to="v2").previous == "v1"
    with pytest.raises(
        RollbackError, match="'v4' was not promoted before 'v2' as indexes/docs: before it was one of v1"
    ):
        catalog.rollback("indexes", "docs", to="v4")
    assert catalog.promoted("indexes", "docs").version == "v2"  # type: ignore[union-attr]


def test_nothing_to_roll_back(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    with pytest.raises(RollbackError, match="nothing is promoted as indexes/docs"):
        catalog.rollback("indexes", "docs")


def test_a_version_that_is_gone_is_not_gone_back_to(
    catalog: Catalog, store: ObjectStore, versions: list[ArtifactRef], tree: Tree
) -> None:
    for ref in versions[:3]:
        catalog.promote(ref)
    store.delete("indexes/docs/v2/manifest.json")
    with pytest.raises(RollbackError, match=r"docs/v2', to which .* is deleted; .* versions: v1, v3, v4"):
        catalog.rollback("indexes", "docs")
    assert catalog.rollback("indexes", "docs", to="v1").version == "v1"
    catalog.promote(versions[2])
    store.delete("indexes/docs/v1/manifest.json")
    catalog.publish(tree({"a": b"other"}), kind="indexes", name="docs", metadata={}, version="v1")
    with pytest.raises(RollbackError, match="published again with other content"):
        catalog.rollback("indexes", "docs")


def test_of_two_rollbacks_at_once_one_is_told(tmp_path: Path, catalog: Catalog, versions: list[ArtifactRef]) -> None:
    for ref in versions[:3]:
        catalog.promote(ref)

    class Slow(FileStore):
        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            if len(catalog.history("indexes", "docs")) == 3:
                catalog.rollback("indexes", "docs")
            super().compare_and_set(key, data, expected=expected)

    with pytest.raises(PromotionConflictError, match="another writer moved indexes/docs first: now 'v2'"):
        Catalog(Slow(tmp_path / "store")).rollback("indexes", "docs")
    assert [each.version for each in catalog.history("indexes", "docs")] == ["v1", "v2", "v3", "v2"]


def test_an_answer_that_was_lost_is_found_in_the_history(
    tmp_path: Path, catalog: Catalog, versions: list[ArtifactRef]
) -> None:
    class Lossy(FileStore):
        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            super().compare_and_set(key, data, expected=expected)
            catalog.promote(versions[1])
            raise PromotionConflictError("the answer was lost, and the next try found another pointer")

    assert Catalog(Lossy(tmp_path / "store")).promote(versions[0]).version == "v1"
    assert [each.version for each in catalog.history("indexes", "docs")] == ["v1", "v2"]


def test_a_pointer_without_a_history_is_read_and_gone_on_with(
    catalog: Catalog, store: ObjectStore, versions: list[ArtifactRef]
) -> None:
    digest = catalog.manifest(versions[1]).digest
    old = {"version": "v2", "digest": digest, "previous": "v1", "promoted_at": "2026-01-01T00:00:00+00:00"}
    store.put_bytes("indexes/docs/PROMOTED", json.dumps(old).encode())
    assert catalog.resolve("indexes", "docs").version == "v2"
    assert [(each.number, each.version, each.by) for each in catalog.history("indexes", "docs")] == [(1, "v2", "")]
    assert catalog.promote(versions[2]).previous == "v2"
    assert catalog.rollback("indexes", "docs").version == "v2"
    before = catalog.rollback("indexes", "docs")
    assert (before.version, before.previous, before.restores) == ("v1", None, None)
    assert [each.number for each in catalog.history("indexes", "docs")] == [1, 2, 3, 4]


def test_nothing_of_a_long_history_is_lost(catalog: Catalog, store: ObjectStore, versions: list[ArtifactRef]) -> None:
    total = POINTER_PROMOTIONS + 2 * ARCHIVE_PROMOTIONS + 7
    for number in range(total):
        catalog.promote(versions[number % 2], reason=f"{number + 1}")
    history = catalog.history("indexes", "docs")
    assert [(each.number, each.reason) for each in history] == [(n, f"{n}") for n in range(1, total + 1)]
    assert store.list_names("indexes/docs/.history") == ["00000001.json", "00000051.json", "00000101.json"]
    pointer = catalog.promoted("indexes", "docs")
    assert pointer is not None
    assert len(pointer.promotions) == total - 3 * ARCHIVE_PROMOTIONS
    assert catalog.history("indexes", "docs", last=120) == history[-120:]
    assert catalog.versions("indexes", "docs") == ["v1", "v2", "v3", "v4"]
    # The way back leads through the archive.
    for _ in range(total - 1):
        pointer = catalog.rollback("indexes", "docs")
    assert (pointer.version, pointer.previous) == ("v1", None)
    with pytest.raises(RollbackError, match="nothing was promoted before it"):
        catalog.rollback("indexes", "docs")


def test_a_promoter_that_dies_after_it_archived_leaves_the_history_whole(
    tmp_path: Path, catalog: Catalog, versions: list[ArtifactRef]
) -> None:
    class Dying(FileStore):
        def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
            if key.endswith("PROMOTED"):
                raise KeyboardInterrupt
            super().compare_and_set(key, data, expected=expected)

    for number in range(POINTER_PROMOTIONS):
        catalog.promote(versions[number % 2])
    with pytest.raises(KeyboardInterrupt):
        Catalog(Dying(tmp_path / "store")).promote(versions[3])
    assert [each.number for each in catalog.history("indexes", "docs")] == list(range(1, POINTER_PROMOTIONS + 1))
    catalog.promote(versions[2])
    assert [each.number for each in catalog.history("indexes", "docs")] == list(range(1, POINTER_PROMOTIONS + 2))


def test_a_lost_archive_is_told(catalog: Catalog, store: ObjectStore, versions: list[ArtifactRef]) -> None:
    for number in range(POINTER_PROMOTIONS + 1):
        catalog.promote(versions[number % 2])
    store.delete("indexes/docs/.history/00000001.json")
    with pytest.raises(ArtifactCorruptError, match="promotion 50 of indexes/docs is lost"):
        catalog.history("indexes", "docs")


def test_a_gap_in_the_pointer_is_told(catalog: Catalog, store: ObjectStore, versions: list[ArtifactRef]) -> None:
    for ref in versions:
        catalog.promote(ref)
    document = json.loads(store.read_bytes("indexes/docs/PROMOTED"))
    del document["earlier"][1]
    store.put_bytes("indexes/docs/PROMOTED", json.dumps(document).encode())
    with pytest.raises(ArtifactCorruptError, match="not numbered one after the other"):
        catalog.promoted("indexes", "docs")


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["v1", "v2", "v3"]), st.none()), max_size=260))
def test_promotions_and_rollbacks_are_those_of_a_stack(moves: list[str | None]) -> None:
    """None is a rollback. What is said of the stack holds through every form of the pointer's bytes."""
    state, stack, told, archive = PointerState(), [], [], []  # type: ignore[var-annotated]
    for move in moves:
        now = state.pointer
        archive.extend(state.overflow())
        if move is None:
            if now is None or now.back is None:
                assert len(stack) <= 1
                continue
            target = next(each for each in (*archive, *now.promotions) if each.number == now.back)
            stack.pop()
            state = state.restore(target, DIGEST, by="ann", reason="", forced=False)
        else:
            if not stack or stack[-1] != move:
                stack.append(move)
            state = state.promote(move, DIGEST, by="ann", reason="", forced=False)
        told.append(stack[-1])
        state = PointerState.from_bytes(state.to_bytes(), url="here")
        assert state.pointer is not None
        assert state.pointer.version == stack[-1]
        assert state.pointer.previous == (stack[-2] if len(stack) > 1 else None)
        assert len(state.pointer.promotions) <= POINTER_PROMOTIONS
    pointer = state.pointer
    whole = {each.number: each.version for each in (*archive, *(pointer.promotions if pointer else ()))}
    assert [whole[number] for number in sorted(whole)] == told
    assert sorted(whole) == list(range(1, len(told) + 1))


def test_what_is_withdrawn_begins_anew(catalog: Catalog, versions: list[ArtifactRef]) -> None:
    for _ in range(2):
        catalog.withdraw("indexes", "docs")
        assert catalog.promoted("indexes", "docs") is None
        assert catalog.history("indexes", "docs") == []
        # So many that some are archived: under the names that those before were.
        for number in range(POINTER_PROMOTIONS + 5):
            catalog.promote(versions[number % 2])
    assert len(catalog.history("indexes", "docs")) == POINTER_PROMOTIONS + 5
