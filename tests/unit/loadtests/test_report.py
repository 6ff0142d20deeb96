"""The shape of a benchmark's report: goals, intervals, files and exit codes."""

import json
import math
import random
import statistics
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from loadtests import report
from loadtests.report import Goal, Report


def build(*goals: Goal, samples: list[dict[str, report.Value]] | None = None) -> Report:
    return Report(
        name="demo",
        machine=report.machine(),
        rounds=2,
        samples=samples or [],
        arms={"bare": {"median_ms": 1.5, "interval": (1.0, math.nan)}},
        goals={f"demo.goal_{number}": goal for number, goal in enumerate(goals)},
    )


@pytest.mark.parametrize(
    ("value", "goal", "met"),
    [
        (0.9, ">= 0.9", True),
        (0.89, ">= 0.9", False),
        (0.02, "<= 0.02", True),
        (5, "< 5", False),
        (5.1, "> 5", True),
        (-1.0, "== -1", True),
        (None, ">= 0", False),
        (math.nan, "<= 1", False),
    ],
)
def test_goals(value: float | None, goal: str, met: bool) -> None:
    assert Goal(value, goal).met is met


@pytest.mark.parametrize("goal", ["0.9", ">=0.9", "about 3", ">= x", ""])
def test_a_goal_that_says_nothing_is_refused(goal: str) -> None:
    with pytest.raises(ValueError, match="comparison"):
        Goal(1.0, goal)


def test_exit_codes() -> None:
    met, missed = Goal(1, ">= 1"), Goal(0, ">= 1")

    assert report.exit_code(build(met)) == 0
    assert report.exit_code(build(met, missed)) == 1
    assert report.exit_code(build(met), arms_agree=False) == 2
    assert report.exit_code(build(missed), arms_agree=False) == 2


def test_files_are_written_whole_and_hold_raw_samples(tmp_path: Path) -> None:
    samples: list[dict[str, report.Value]] = [{"round": 0, "arm": "bare", "ttft_ms": math.inf}]

    target = report.write(build(Goal(None, ">= 1"), samples=samples), Figure(), directory=tmp_path / "results")

    document = json.loads(target.read_text(encoding="utf-8"))
    assert list(document) == ["name", "machine", "rounds", "samples", "arms", "goals"]
    assert document["samples"] == [{"round": 0, "arm": "bare", "ttft_ms": None}]
    assert document["arms"]["bare"]["interval"] == [1.0, None]
    assert document["goals"]["demo.goal_0"] == {"value": None, "goal": ">= 1", "met": False}
    assert sorted(path.name for path in target.parent.iterdir()) == ["demo.json", "demo.png"]
    assert target.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_machine_has_no_name_and_no_path() -> None:
    text = json.dumps(report.machine())

    assert "python" in report.machine()
    assert "/" not in text.replace("CPU @", "")
    assert Path.cwd().name not in json.loads(text)


def test_wilson_interval_of_a_published_example() -> None:
    low, high = report.wilson_interval(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662

    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert report.wilson_interval(0, 0) == (0.0, 1.0)
    assert report.wilson_interval(0, 29)[0] == 0.0


def test_intervals_cover_what_they_should() -> None:
    draw = random.Random(5)
    covered = {"mean": 0, "median": 0}
    for _ in range(200):
        values = [draw.gauss(10, 2) for _ in range(9)]
        low, high = report.mean_interval(values)
        covered["mean"] += low <= 10 <= high
        low, high = report.bootstrap_interval(values, resamples=300)
        covered["median"] += low <= 10 <= high
    assert 180 <= covered["mean"] <= 199
    assert covered["median"] >= 170


def test_intervals_of_too_little() -> None:
    assert all(map(math.isnan, report.mean_interval([3.0])))
    assert all(map(math.isnan, report.bootstrap_interval([])))
    assert report.bootstrap_interval([2.0] * 5) == (2.0, 2.0)
    assert report.bootstrap_interval([1, 2, 9], statistic=statistics.fmean)[1] <= 9


def test_a_column_follows_the_rounds() -> None:
    samples: list[dict[str, report.Value]] = [
        {"round": 1, "arm": "a", "ms": 4.0},
        {"round": 0, "arm": "a", "ms": 3.0},
        {"round": 0, "arm": "b", "ms": 9.0},
        {"round": 2, "arm": "a"},
    ]

    assert report.column(samples, arm="a", key="ms") == [3.0, 4.0]
