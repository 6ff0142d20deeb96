"""Applying and rolling back against a real store: the plan, the pointer, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.promotion import Condemned
from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import (
    ArtifactCorruptError,
    ConflictError,
    IncompatibleReleaseError,
    NotFoundError,
    PromotionConflictError,
    RollbackError,
)
from rag_stack.releases.listing import history_row, status_row, version_rows
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.plan import RolloutPlan, RolloutStore, steady
from rag_stack.releases.progress import Evidence, Seen, begin, go_back
from rag_stack.releases.rollout import Rollout
from tests.pinnable import publish_docs, publish_model

Pinned = Callable[..., PinnedRelease]
READY = Seen(replicas=1, ready=1)
GONE = Seen()
QUICK = {"steps": (0.5, 1.0), "step_s": 0, "step_requests": 1}


@pytest.fixture
def rollout(catalog: Catalog) -> Rollout:
    return Rollout(catalog, "demo", clock=lambda: 100.0)


@pytest.fixture
def two(rollout: Rollout, pinned: Pinned) -> tuple[str, str]:
    """v1 is promoted, and v2 on its way."""
    first = rollout.apply(pinned(), reason="first")
    second = rollout.apply(pinned(prompt={"system": "Be brief."}, rollout=QUICK), reason="second", by="me")
    assert (first.outcome, second.outcome) == ("promoted", "rollout")
    return first.version, second.version


def promoted(rollout: Rollout) -> str:
    pointer = rollout.pointer()
    assert pointer is not None
    return pointer.version


def test_the_first_version_is_promoted_at_once(rollout: Rollout, pinned: Pinned) -> None:
    applied = rollout.apply(pinned())
    assert promoted(rollout) == applied.version == pinned().version
    assert (applied.plan.state, applied.plan.old) == ("steady", applied.version)
    assert rollout.apply(pinned(), reason="again").outcome == "unchanged"


def test_a_rollout_to_its_end(rollout: Rollout, two: tuple[str, str]) -> None:
    old, new = two
    seen = []
    for evidence in (
        Evidence(now_s=101, old=READY, new=READY),
        Evidence(now_s=102, old=READY, new=READY),
        Evidence(now_s=103, old=READY, new=READY),
    ):
        plan = rollout.advance(evidence).plan
        seen.append((plan.state, plan.share, promoted(rollout)))
    assert seen == [("canary", 0.5, old), ("canary", 1.0, old), ("promoting", 1.0, new)]
    assert rollout.advance(Evidence(now_s=104, old=GONE, new=READY)).plan.state == "steady"
    history = history_row(rollout)
    last = history["promotions"][0]
    assert (last["version"], last["reason"], last["by"]) == (new, "second", "me")
    assert [(each["outcome"], each["old"], each["new"]) for each in history["rollouts"]] == [("promoted", old, new)]


def test_what_fails_is_taken_back_with_its_reason(rollout: Rollout, two: tuple[str, str]) -> None:
    old, new = two
    plan = rollout.advance(Evidence(now_s=101, old=READY, new=Seen(failed_starts=3))).plan
    assert (plan.state, promoted(rollout)) == ("rolling_back", old)
    plan = rollout.advance(Evidence(now_s=102, old=READY)).plan
    assert (plan.state, plan.old, plan.ended[-1].new) == ("steady", old, new)
    assert "failed to start" in status_row(rollout)["plan"]["reason"]
    assert [row["promoted"] for row in version_rows(rollout.catalog, "demo")].count(True) == 1


def test_a_second_rollout_waits_or_replaces(rollout: Rollout, two: tuple[str, str], pinned: Pinned) -> None:
    old, _ = two
    third = pinned(retrieval={"top_k": 9})
    with pytest.raises(ConflictError, match="--replace"):
        rollout.apply(third)
    assert rollout.apply(pinned(prompt={"system": "Be brief."})).outcome == "rollout"
    plan = rollout.apply(third, replacing=True).plan
    assert (plan.old, plan.new, plan.ended[-1].outcome) == (old, third.version, "replaced")
    back = rollout.apply(pinned(), replacing=True).plan
    assert (back.state, back.goal) == ("rolling_back", old)


def test_at_once_moves_the_pointer_before_any_replica(rollout: Rollout, pinned: Pinned) -> None:
    rollout.apply(pinned())
    applied = rollout.apply(pinned(prompt={"system": "Be brief."}), at_once=True)
    assert (applied.outcome, applied.plan.state, promoted(rollout)) == ("promoted", "promoting", applied.version)
    assert [(each.field, each.after) for each in applied.changes] == [("prompt.system", "Be brief.")]


def test_going_back_without_a_server_and_again(rollout: Rollout, pinned: Pinned) -> None:
    versions = []
    for number in range(3):
        applied = rollout.apply(pinned(retrieval={"top_k": number + 1}), at_once=True)
        rollout.advance(Evidence(now_s=1, old=GONE))
        versions.append(applied.version)
    plan = rollout.rollback(reason="slow", by="me")
    assert (plan.state, plan.old, plan.new, promoted(rollout)) == (
        "rolling_back",
        versions[1],
        versions[2],
        versions[1],
    )
    rollout.advance(Evidence(now_s=2, old=READY))
    assert rollout.rollback().goal == promoted(rollout) == versions[0]
    rollout.advance(Evidence(now_s=3, old=READY))
    with pytest.raises(RollbackError, match="nothing was promoted before it"):
        rollout.rollback()
    with pytest.raises(RollbackError, match="there is no going back to it"):
        rollout.rollback(to=versions[0])
    with pytest.raises(RollbackError, match="was never promoted"):
        rollout.rollback(to="nothing")
    assert history_row(rollout)["promotions"][1]["reason"] == "slow"


def test_going_back_in_every_state_of_a_rollout(rollout: Rollout, two: tuple[str, str]) -> None:
    old, new = two
    with pytest.raises(PromotionConflictError, match="expected"):
        rollout.rollback(expected=old)
    plan = rollout.rollback(reason="no", expected=new)
    assert (plan.state, plan.reason, promoted(rollout)) == ("rolling_back", "no", old)
    assert rollout.rollback() == plan


def test_going_back_while_it_is_promoted(rollout: Rollout, two: tuple[str, str]) -> None:
    old, new = two
    for _ in range(3):
        rollout.advance(Evidence(now_s=101, old=READY, new=READY))
    assert promoted(rollout) == new
    assert rollout.rollback(reason="late").goal == promoted(rollout) == old
    assert history_row(rollout)["promotions"][0]["restores"] is not None


def test_nothing_to_roll_back_or_show(rollout: Rollout) -> None:
    for call in (rollout.rollback, rollout.settle, lambda: status_row(rollout)):
        with pytest.raises(NotFoundError, match="rag-stack release apply"):
            call()


@pytest.mark.parametrize("state", ["promoting", "rolling_back"])
def test_who_was_killed_between_plan_and_pointer_is_finished(
    rollout: Rollout, two: tuple[str, str], catalog: Catalog, state: str
) -> None:
    plan = rollout.plan()
    assert plan is not None
    store = RolloutStore(catalog.store, "demo")
    if state == "promoting":
        moved = store.move(plan, RolloutPlan(old=two[0], new=two[1], state="promoting", began_s=0, step_began_s=0))
    else:
        catalog.promote(catalog.manifest(catalog.resolve("releases", "demo", two[1]).ref).ref)
        moved = store.move(plan, go_back(plan, now_s=1, reason="bad"))
    assert rollout.advance(Evidence(now_s=2, old=READY, new=READY)).plan == moved
    assert promoted(rollout) == moved.goal


def test_of_two_who_move_a_plan_one_wins(catalog: Catalog) -> None:
    store = RolloutStore(catalog.store, "demo")
    first = store.move(None, steady("v1", now_s=0))
    with pytest.raises(PromotionConflictError, match="steady from 'v1'"):
        store.move(None, steady("v2", now_s=0))
    second = store.move(first, begin(first, "v2", rollout=first.rollout, now_s=1))
    with pytest.raises(PromotionConflictError):
        store.move(first, steady("v3", now_s=0))
    assert store.read() == second
    assert (first.revision, second.revision) == (1, 2)


@pytest.mark.parametrize("text", ["{}", "no", '{"old": "v1", "began_s": 0, "step_began_s": 0, "state": "canary"}'])
def test_a_damaged_plan_is_named(catalog: Catalog, text: str) -> None:
    catalog.store.put_bytes("releases/demo/ROLLOUT", text.encode())
    with pytest.raises(ArtifactCorruptError, match="releases/demo/ROLLOUT"):
        RolloutStore(catalog.store, "demo").read()


def test_a_rollouts_versions_are_kept(rollout: Rollout, two: tuple[str, str], catalog: Catalog) -> None:
    kept = Retention(catalog, grace_s=0).collect("releases", keep=0, older_than_s=0).kept
    assert {each.ref.version for each in kept} == set(two)
    assert catalog.names("releases") == ["demo"]


def test_no_way_back_to_what_is_being_deleted(rollout: Rollout, pinned: Pinned, catalog: Catalog) -> None:
    first = rollout.apply(pinned())
    second = rollout.apply(pinned(prompt={"system": "Be brief."}), at_once=True)
    rollout.advance(Evidence(now_s=101))
    state, data = catalog.state("releases", "demo")
    marked = state.with_condemned({first.version: Condemned(by="gc", at="2026-01-01T00:00:00+00:00")})
    catalog.swap("releases", "demo", marked, expected=data)
    with pytest.raises(PromotionConflictError, match="being deleted"):
        rollout.rollback()
    assert rollout.settle().goal == second.version


def test_what_was_seen_of_another_plan_moves_none(rollout: Rollout, two: tuple[str, str], pinned: Pinned) -> None:
    seen_of = rollout.plan()
    replaced = rollout.apply(pinned(prompt={"system": "Be kind."}), replacing=True).plan
    failed = Evidence(now_s=101, old=READY, new=Seen(failed_starts=3))
    assert rollout.advance(failed, expected=seen_of).plan == replaced
    assert rollout.advance(failed, expected=replaced).plan.state == "rolling_back"


def test_a_promoted_release_without_a_plan_has_the_same_one_at_each_look(
    catalog: Catalog, two: tuple[str, str]
) -> None:
    catalog.store.delete("releases/demo/ROLLOUT")
    looks = [Rollout(catalog, "demo", clock=lambda now_s=now_s: now_s).plan() for now_s in (1.0, 2.0)]
    assert looks[0] == looks[1]


def test_a_store_that_follows_needs_no_rollout(rollout: Rollout, pinned: Pinned, catalog: Catalog) -> None:
    follows: dict[str, Any] = {"stores": [{"name": "docs", "index": "docs"}]}
    first = rollout.apply(pinned(**follows))
    catalog.promote(catalog.resolve("indexes", "docs", "v2").ref)
    applied = rollout.apply(pinned(**follows))
    assert (applied.outcome, applied.version) == ("unchanged", first.version)


def test_an_index_of_another_embedder_is_refused(
    rollout: Rollout, pinned: Pinned, catalog: Catalog, tmp_path: Path, tiers: Tiers
) -> None:
    rollout.apply(pinned())
    other = publish_model(catalog, tmp_path, "words", "another embedder")
    with pytest.raises(IncompatibleReleaseError, match="build an index version with it"):
        rollout.apply(pinned())
    publish_docs(catalog, tmp_path, "v3", embedder=other)
    applied = rollout.apply(pinned(stores=[{"name": "docs", "index": "docs", "version": "v3"}]))
    assert {each.field for each in applied.changes} == {"embedder.version", "stores.docs.version"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"engine": {"tensor_parallel_size": 2}}, "engine.tensor_parallel_size cannot change replica by replica"),
        ({"engine_env": {"A": "1"}}, "engine_env cannot change"),
        ({"gpu_index": {"enabled": True}}, "gpu_index.enabled cannot change"),
        ({"model": {"name": "words"}}, "clients that ask for the old one would get 404"),
    ],
)
def test_what_one_deployment_cannot_go_to_is_refused(
    rollout: Rollout, pinned: Pinned, changes: dict[str, Any], told: str
) -> None:
    rollout.apply(pinned())
    with pytest.raises(IncompatibleReleaseError, match=told):
        rollout.apply(pinned(**changes))
    applied = rollout.apply(pinned(**changes), restart=True)
    assert applied.outcome == "promoted"
    rollout.advance(Evidence(now_s=1, old=GONE))
    with pytest.raises(IncompatibleReleaseError):
        rollout.rollback()


def test_tensor_parallel_size_1_is_the_default(rollout: Rollout, pinned: Pinned) -> None:
    rollout.apply(pinned())
    assert rollout.apply(pinned(engine={"tensor_parallel_size": 1})).outcome == "rollout"


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_what_is_not_whole_in_the_store_is_refused(
    rollout: Rollout, pinned: Pinned, tmp_path: Path, damage: str
) -> None:
    release = pinned()
    file = next((tmp_path / "store/indexes/docs/v1").glob("*.faiss"))
    if damage == "missing":
        file.unlink()
    else:
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IncompatibleReleaseError, match=r"index\.faiss.*(missing|bytes)"):
        rollout.apply(release)
    assert rollout.plan() is None
