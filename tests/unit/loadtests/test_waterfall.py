"""What the wakes' benchmark makes of a replica's report: one whole from the question on, ratios by round, goals."""

from typing import Any

import pytest

from loadtests.waterfall_figures import ArmName, Wake, answers_agree, build_report, middle
from loadtests.waterfall_plot import draw


def card(seconds: float) -> dict[str, Any]:
    stage = {"name": "import vLLM", "process": "replica", "start_seconds": 0.0, "seconds": seconds}
    return {"started_at": 102.0, "ready_at": 102.0 + seconds, "stages": [stage]}


def wake(arm: ArmName, seconds: float, *, number: int = 0, answer: str = "same") -> Wake:
    """Asked at 100, its replica starts two seconds later and is ready a second before the first token."""
    load = {} if arm == "bare" else card(seconds - 3)
    return Wake(number, arm, seconds, answer, 1.0, load=load, asked_s=0.0 if arm == "bare" else 100.0)


def test_a_wake_is_whole_from_the_question_to_the_first_token() -> None:
    whole = wake("fork", 12).breakdown()
    assert whole.seconds == pytest.approx(12)
    assert whole.unnamed_s == pytest.approx(0)
    waited = {stage.span.name: stage.critical_s for stage in whole.stages}
    assert waited == pytest.approx({"decide to start": 2, "import vLLM": 9, "put into service and answer": 1})


def test_ratios_are_of_what_ran_side_by_side() -> None:
    """The second round's machine was twice as slow, for all."""
    wakes = [wake("bare", 20), wake("fork", 14), wake("standby", 5)]
    wakes += [wake("bare", 40, number=1), wake("fork", 28, number=1), wake("standby", 14, number=1)]
    goals = build_report(wakes).goals
    assert goals["waterfall.fork_vs_bare"].value == pytest.approx(0.7)
    assert goals["waterfall.standby_vs_bare"].value == pytest.approx(0.3)
    assert goals["waterfall.standby_vs_bare"].met


def test_an_arm_that_was_not_measured_misses_its_goal() -> None:
    assert not build_report([wake("bare", 20), wake("fork", 14)]).goals["waterfall.standby_vs_bare"].met


def test_other_answers_are_seen() -> None:
    assert answers_agree([wake("bare", 20), wake("fork", 14)])
    assert not answers_agree([wake("bare", 20), wake("fork", 14, answer="other")])


def test_the_median_wake_of_each_arm_is_drawn() -> None:
    wakes = [wake("fork", seconds, number=n) for n, seconds in enumerate((30, 10, 20))] + [wake("bare", 40)]
    shown = middle(wakes, "fork")
    assert shown is not None
    assert shown.seconds == 20
    assert [axes.get_title() for axes in draw(wakes).axes] == ["Bare vLLM: 40.0 s", "Forked, imported beside: 20.0 s"]
