"""The state machine of a rollout: each gate, and what holds whatever is seen."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_stack.config import Canary, RolloutConfig
from rag_stack.releases.plan import RolloutPlan, steady
from rag_stack.releases.progress import (
    MIN_TTFT_SAMPLES,
    CanaryResult,
    Evidence,
    Seen,
    begin,
    decide,
    go_back,
    promote_now,
    step_limit_s,
)

CONFIG = RolloutConfig(steps=(0.1, 1.0), step_requests=10, step_s=5, limit_s=300, max_error_rate=0.1, max_ttft_ratio=2)
READY = Seen(replicas=1, ready=1)


def canary(step: int = 0, config: RolloutConfig = CONFIG) -> RolloutPlan:
    plan = begin(steady("v1", now_s=0), "v2", rollout=config, now_s=0, reason="newer", by="me")
    return replace(plan, step=step, share=config.steps[step] if step >= 0 else 0.0)


def seen(now_s: float, *, old: Seen = READY, **new: float) -> Evidence:
    return Evidence(now_s=now_s, old=old, new=replace(READY, **new))


def test_no_share_before_a_replica_is_ready_and_every_canary_passed() -> None:
    plan = canary(-1, CONFIG.model_copy(update={"canaries": (Canary(question="a"), Canary(question="b"))}))
    assert decide(plan, Evidence(now_s=1)).waits_for == "a replica of the new version to start"
    one = (CanaryResult(question="a", passed=True),)
    assert decide(plan, seen(1, canaries=one)).waits_for == "1 canary questions"
    following = decide(plan, seen(1, canaries=(*one, CanaryResult(question="b", passed=True)))).plan
    assert (following.state, following.step, following.share, following.step_began_s) == ("canary", 0, 0.1, 1)
    wrong = decide(plan, seen(1, canaries=(*one, CanaryResult(question="b", passed=False, detail="no source")))).plan
    assert (wrong.state, wrong.share, wrong.reason) == ("rolling_back", 0.0, "canary question 'b': no source")


def test_a_version_that_cannot_start_goes_back_at_once() -> None:
    assert decide(canary(-1), Evidence(now_s=1, new=Seen(failed_starts=2))).plan.state == "canary"
    assert "failed to start 3 times" in decide(canary(-1), Evidence(now_s=1, new=Seen(failed_starts=3))).plan.reason


def test_a_step_takes_its_time_and_its_requests() -> None:
    assert decide(canary(), seen(4, answered=100)).waits_for == "1 s to pass"
    assert decide(canary(), seen(6, answered=7)).waits_for == "3 more answers of the new version"
    assert decide(canary(), seen(6, answered=10)).plan.share == 1.0
    last = decide(canary(1), seen(6, answered=10)).plan
    assert (last.state, last.goal) == ("promoting", "v2")


def test_an_idle_server_rolls_out_and_a_quiet_one_in_time() -> None:
    assert decide(canary(), seen(6)).plan.step == 1
    asked = replace(READY, answered=3)
    assert decide(canary(), seen(6, old=asked)).plan.step == 0
    assert decide(canary(), seen(step_limit_s(CONFIG), old=asked, answered=2)).plan.step == 1


def test_errors_go_back_as_soon_as_the_step_cannot_pass_any_more() -> None:
    assert decide(canary(), seen(1, answered=1, failed=1)).plan.state == "canary"
    reason = decide(canary(), seen(1, answered=2, failed=2)).plan.reason
    assert reason == "2 of 2 answers of the new version failed in step 0, over 10.0%"
    assert decide(canary(), seen(step_limit_s(CONFIG), answered=5, failed=1)).plan.state == "rolling_back"


@pytest.mark.parametrize(
    ("old_s", "new_s", "samples", "state"),
    [
        (0.5, 0.99, MIN_TTFT_SAMPLES, "canary"),
        (0.5, 1.01, MIN_TTFT_SAMPLES, "rolling_back"),
        (0.5, 1.01, MIN_TTFT_SAMPLES - 1, "canary"),
        (0.005, 0.05, MIN_TTFT_SAMPLES, "canary"),
        (0.005, 0.06, MIN_TTFT_SAMPLES, "rolling_back"),
    ],
)
def test_the_first_token_is_compared_with_the_old_versions(
    old_s: float, new_s: float, samples: int, state: str
) -> None:
    old = replace(READY, answered=100, ttft_samples=100, ttft_median_s=old_s)
    following = decide(canary(), seen(6, old=old, answered=50, ttft_samples=samples, ttft_median_s=new_s)).plan
    assert following.state == state
    assert (following.step == 1) == (state == "canary")


def test_what_takes_too_long_goes_back() -> None:
    assert decide(canary(-1), Evidence(now_s=301)).plan.reason == "not through after 300 s"


def test_a_lost_replica_holds_the_step() -> None:
    following = decide(canary(), Evidence(now_s=100, old=READY, new=Seen(answered=50)))
    assert following.waits_for == "a replica of the new version to be ready again"


def test_both_ends_come_when_the_last_replica_has_gone_and_are_remembered() -> None:
    promoting = replace(canary(1), state="promoting", share=1.0)
    assert decide(promoting, seen(7)).waits_for == "1 replicas of v1 to end"
    done = decide(promoting, seen(7, old=Seen())).plan
    assert (done.old, done.new, done.state, done.reason) == ("v2", None, "steady", "newer")
    assert [(e.old, e.new, e.outcome, e.began_s, e.ended_s) for e in done.ended] == [("v1", "v2", "promoted", 0, 7)]
    back = go_back(canary(), now_s=3, reason="bad")
    assert decide(back, seen(7)).waits_for == "1 replicas of v2 to end"
    done = decide(back, Evidence(now_s=7, old=READY)).plan
    assert (done.old, done.new, done.state, done.ended[-1].reason) == ("v1", None, "steady", "bad")
    assert done.ended[-1].outcome == "rolled_back"


def test_going_back_from_every_state() -> None:
    back = go_back(canary(), now_s=3, reason="bad", by="you")
    assert (back.old, back.new, back.goal, back.by) == ("v1", "v2", "v1", "you")
    assert go_back(back, now_s=4, reason="again") == back
    promoted = go_back(promote_now(steady("v1", now_s=0), "v2", now_s=1), now_s=3, reason="bad")
    assert (promoted.old, promoted.new, promoted.goal) == ("v1", "v2", "v1")
    standing = go_back(steady("v2", now_s=0), now_s=3, reason="bad", to="v1")
    assert (standing.old, standing.new, standing.goal, standing.leaving) == ("v1", "v2", "v1", "v2")
    further = go_back(canary(), now_s=3, reason="bad", to="v0")
    assert (further.old, further.new, further.ended[-1].outcome) == ("v0", "v1", "replaced")
    with pytest.raises(ValueError, match="nothing is being rolled out"):
        go_back(steady("v1", now_s=0), now_s=1, reason="")


SIDES = st.builds(
    Seen,
    replicas=st.integers(0, 2),
    ready=st.integers(0, 2),
    failed_starts=st.integers(0, 3),
    answered=st.integers(0, 30),
    failed=st.integers(0, 4),
    ttft_samples=st.integers(0, 40),
    ttft_median_s=st.floats(0, 2),
    canaries=st.sampled_from(
        [(), (CanaryResult(question="a", passed=True),), (CanaryResult(question="a", passed=False),)]
    ),
)
LOOKS = st.lists(st.tuples(st.floats(0, 60), SIDES, SIDES), max_size=40)
CONFIGS = st.builds(
    RolloutConfig,
    steps=st.sampled_from([(1.0,), (0.05, 1.0), (0.05, 0.25, 0.5, 1.0)]),
    step_requests=st.integers(1, 20),
    step_s=st.floats(0, 30),
    limit_s=st.floats(1, 600),
    max_error_rate=st.floats(0, 0.5),
    canaries=st.sampled_from([(), (Canary(question="a"),)]),
)


@settings(max_examples=80, deadline=None)
@given(CONFIGS, LOOKS)
def test_whatever_is_seen_a_rollout_rises_step_by_step_or_goes_back(
    config: RolloutConfig, looks: list[tuple[float, Seen, Seen]]
) -> None:
    plan, now_s = canary(-1, config), 0.0
    for passed_s, old, new in looks:
        now_s += passed_s
        evidence = Evidence(now_s=now_s, old=old, new=replace(new, failed=min(new.failed, new.answered)))
        before, plan = plan, decide(plan, evidence).plan
        # It is what is written down that goes on after a restart.
        assert RolloutPlan.from_bytes(plan.to_bytes(), url="plan") == plan
        _check_move(before, plan, evidence)


def _check_move(before: RolloutPlan, plan: RolloutPlan, evidence: Evidence) -> None:
    assert 0 <= plan.share <= 1
    if plan.share < before.share:
        assert plan.state in ("rolling_back", "steady")
    if plan == before:
        return
    match before.state, plan.state:
        case "canary", "canary" | "promoting":
            config, new = before.rollout, evidence.new
            assert new.ready
            assert plan.step in (before.step, before.step + 1)
            assert len(new.canaries) >= len(config.canaries) or before.step >= 0
            assert all(each.passed for each in new.canaries)
            if before.step >= 0:
                assert new.failed <= config.max_error_rate * new.answered
                assert evidence.now_s - before.step_began_s >= config.step_s
            if plan.state == "promoting":
                assert before.step == len(config.steps) - 1
                assert before.share == 1.0
        case "canary", "rolling_back":
            assert plan.reason
            assert plan.goal == before.old
        case "promoting" | "rolling_back", "steady":
            assert plan.goal == before.goal
            assert len(plan.ended) == len(before.ended) + 1
            assert plan.new is None
        case moved:
            raise AssertionError(moved)
