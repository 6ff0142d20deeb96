"""What the load test counts as wrong."""

from dataclasses import replace

from loadtests.rollout_load import SLACK_S, Asked, Moment, allowed, moved_too_often, wrong_release
from rag_stack.releases.plan import RolloutPlan, steady

CALM = steady("old", now_s=0.0)
CANARY = replace(CALM, new="new", state="canary", began_s=100.0)
HALF = replace(CANARY, share=0.5, step=0)
BACK = replace(CANARY, state="rolling_back")


def asked(at_s: float, release: str, *, session: str = "", problem: str = "") -> Asked:
    return Asked(at_s, 1.0, stream=True, session=session, release=release, problem=problem)


def moments(*plans: RolloutPlan) -> list[Moment]:
    return [Moment(100.0 * number, plan) for number, plan in enumerate(plans)]


def test_a_new_version_may_answer_once_it_has_a_share_and_shortly_after_it_lost_it() -> None:
    seen = moments(CALM, CANARY, HALF, BACK)
    wrong = [asked(50.0, "new"), asked(150.0, "new"), asked(350.0, "new"), asked(250.0, "other"), asked(250.0, "")]
    right = [asked(250.0, "new"), asked(300.0 + SLACK_S / 2, "new"), *(asked(at, "old") for at in (50.0, 250.0, 350.0))]
    assert wrong_release([*wrong, *right], seen) == wrong
    assert wrong_release([asked(50.0, "", problem="refused")], seen) == [], "that is a failure, counted as one"


def test_while_a_version_is_promoted_the_old_one_answers_until_it_is_gone() -> None:
    assert allowed(replace(HALF, state="promoting", share=1.0)) == {"old", "new"}
    assert allowed(steady("new", now_s=0.0)) == {"new"}


def test_a_session_may_go_forward_once_and_back_with_the_rollout() -> None:
    seen = moments(CALM, CANARY, HALF)
    once = [asked(1.0, "old", session="a"), asked(2.0, "new", session="a"), asked(3.0, "old", session="a")]
    assert moved_too_often(once, seen) == 0
    assert moved_too_often([*once, asked(4.0, "new", session="a")], seen) == 1
