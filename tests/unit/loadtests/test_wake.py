"""The figures of the wake benchmark: what counts as refused, and what makes a run worthless."""

from dataclasses import replace

import pytest

from loadtests.wake_clients import Asked, Burst
from loadtests.wake_figures import Crowd, FirstAnswer, arms_agree, build_report

ANSWERED = Asked(streams=True, text="two hundred steps", first_s=1.0, seconds=2.0)
TIMED_OUT = replace(ANSWERED, text="", problem="timeout")
REFUSED = replace(ANSWERED, text="", problem="RateLimitError: full")
SHA = ANSWERED.answer_sha256
STARTS = [
    FirstAnswer(0, "bare", 10.0, "a"),
    FirstAnswer(0, "stack", 11.0, "a"),
    FirstAnswer(0, "standby", 2.0, "a"),
    FirstAnswer(1, "stack", 40.0, "a"),
    FirstAnswer(1, "bare", 20.0, "a"),
]


def crowd(*asked: Asked, searches: int = 5, failed: int = 0, wakes: int = 1) -> Crowd:
    return Crowd(0, Burst(asked, searches, failed), wakes, SHA)


def test_the_worst_round_counts() -> None:
    crowds = [crowd(ANSWERED, ANSWERED), crowd(TIMED_OUT, REFUSED, REFUSED, wakes=2, failed=1)]
    values = {key: goal.value for key, goal in build_report(STARTS, crowds).goals.items()}
    assert values == {
        "wake.refused": 2,
        "wake.wakes": 2,
        "wake.client_timeouts": 1,
        "wake.search_failed_while_cold": 1,
        "wake.vs_bare_start": pytest.approx(1.55),
        "wake.standby_vs_bare_start": pytest.approx(0.2),
    }


def test_what_was_not_measured_misses_its_goal() -> None:
    goals = build_report(STARTS[:2], [crowd(ANSWERED, searches=0)]).goals
    assert {key for key, goal in goals.items() if not goal.met} == {
        "wake.search_failed_while_cold",
        "wake.standby_vs_bare_start",
    }


def test_another_answer_makes_all_figures_worthless() -> None:
    assert arms_agree(STARTS, [crowd(ANSWERED, REFUSED)])
    assert not arms_agree(STARTS, [crowd(ANSWERED, replace(ANSWERED, text="three steps"))])
    assert not arms_agree([*STARTS, FirstAnswer(2, "bare", 1.0, "b")], [])
    assert crowd(ANSWERED, replace(ANSWERED, text="three steps")).as_warm() == 0.5
