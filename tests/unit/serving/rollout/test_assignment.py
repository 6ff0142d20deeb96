"""What a replica takes, which one goes, and that there are never fewer than serve without a rollout."""

from dataclasses import replace

import pytest

from rag_stack.config import RolloutConfig
from rag_stack.releases.plan import RolloutPlan, State, steady
from rag_stack.serving.rollout.assignment import Live, Stage, release_for, split, surge, to_retire

OLD, NEW = "old", "new"


def plan(state: State, *, share: float = 0.0, surge: int = 1) -> RolloutPlan:
    return replace(steady(OLD, now_s=0.0), new=NEW, state=state, share=share, rollout=RolloutConfig(surge=surge))


def fleet(*releases: str, stage: Stage = "ready") -> list[Live]:
    return [Live(f"{release}{n}", release, stage) for n, release in enumerate(releases)]


def test_without_a_rollout_all_take_what_is_promoted() -> None:
    calm = steady(OLD, now_s=0.0)
    live = fleet(OLD, OLD)
    assert release_for(calm, live, base=2) == OLD
    assert (surge(calm, live), to_retire(calm, live, base=2)) == (0, None)
    assert split(calm, live, base=2, number=4).share == 0.0


def test_the_one_more_is_the_new_release_and_a_replacement_meanwhile_the_old() -> None:
    canary = plan("canary")
    assert surge(canary, fleet(OLD, OLD)) == 1
    assert release_for(canary, fleet(OLD, OLD), base=2) == NEW
    assert release_for(canary, [*fleet(OLD), *fleet(NEW, stage="starting")], base=2) == OLD


def test_at_zero_replicas_the_next_start_takes_the_new_release_and_no_other_is_needed() -> None:
    canary = plan("canary")
    assert release_for(canary, [], base=0) == NEW
    assert surge(canary, []) == 0
    assert surge(canary, fleet(NEW)) == 0
    assert to_retire(canary, fleet(NEW), base=1) is None


@pytest.mark.parametrize(("share", "retires"), [(0.25, False), (0.5, False), (0.75, True), (1.0, True)])
def test_an_old_one_goes_when_the_share_needs_more_of_the_new(share: float, retires: bool) -> None:
    leaves = to_retire(plan("canary", share=share), fleet(OLD, OLD, NEW), base=2)
    assert (leaves == "old0") == retires
    assert leaves in {None, "old0"}


def test_nobody_goes_before_the_one_more_is_ready() -> None:
    live = [*fleet(OLD, OLD), *fleet(NEW, stage="starting")]
    assert to_retire(plan("canary", share=1.0), live, base=2) is None


def test_one_goes_at_a_time() -> None:
    live = [*fleet(OLD, OLD, NEW, NEW), Live("x", OLD, "retiring")]
    assert to_retire(plan("promoting", share=1.0), live, base=2) is None


def test_in_place_one_goes_although_none_is_there_instead() -> None:
    assert to_retire(plan("canary", surge=0), fleet(OLD, OLD), base=2) == "old0"
    assert surge(plan("canary", surge=0), fleet(OLD, OLD)) == 0


def test_when_promoted_the_surge_ends_as_the_last_old_one_stops() -> None:
    promoting = plan("promoting", share=1.0)
    assert to_retire(promoting, fleet(OLD, NEW, NEW), base=2) == "old0"
    assert surge(promoting, [*fleet(NEW, NEW), Live("o", OLD, "retiring")]) == 1
    assert surge(promoting, [*fleet(NEW, NEW), Live("o", OLD, "stopping")]) == 0
    assert release_for(promoting, fleet(NEW), base=2) == NEW


def test_when_it_goes_back_the_new_ones_leave_and_the_old_come_back() -> None:
    back = plan("rolling_back")
    assert to_retire(back, fleet(OLD, OLD, NEW), base=2) == "new2"
    assert to_retire(back, fleet(OLD, NEW), base=2) is None, "two have to serve"
    assert to_retire(back, fleet(OLD, NEW, NEW), base=2) == "new1"
    assert release_for(back, fleet(OLD), base=2) == OLD
    assert split(back, fleet(OLD, OLD, NEW), base=2, number=1).share == 0.0


def test_a_share_is_no_more_than_the_new_releases_part_of_the_replicas() -> None:
    assert split(plan("canary", share=1.0), fleet(OLD, OLD, NEW), base=2, number=1).share == 0.5
    assert split(plan("canary", share=0.25), fleet(OLD, OLD, NEW), base=2, number=1).share == 0.25
    assert split(plan("promoting", share=1.0), fleet(OLD, NEW, NEW), base=2, number=1).share == 1.0


def test_a_replica_of_neither_release_goes_too() -> None:
    live = fleet("ancient", OLD)
    assert to_retire(steady(OLD, now_s=0.0), live, base=1) == "ancient0"
    assert surge(steady(OLD, now_s=0.0), live) == 1
