"""What the cold start's benchmark makes of a server's report: two wholes, shares, goals, and whether the arms agree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests import report
from loadtests.coldstart_figures import ArmName, Start, arms_agree, artifact_share, build_report, middle
from loadtests.coldstart_plot import draw


def stage(name: str, start: float, seconds: float, *, process: str = "replica", **more: Any) -> dict[str, Any]:
    return {"name": name, "process": process, "start_seconds": start, "seconds": seconds} | more


def start(
    number: int = 0, arm: ArmName = "cached", *, gap_s: float = 0, weights_s: float = 1, answer_s: float = 1
) -> Start:
    """A command of 20 s, whose replica starts at 120 s, imports, waits unnamed, loads weights and answers at 140 s."""
    fetched = {"kind": "models", "source": "object_store", "size_bytes": 10} if arm == "empty" else {"kind": "models"}
    import_s = 20 - gap_s - weights_s
    replica = [
        stage("import vLLM", 0, import_s),
        stage("load weights", 20 - weights_s, weights_s, process="worker", kind="models", size_bytes=100),
        stage("open town", 1, 5, kind="indexes", beside=True),
    ]
    command = [
        stage("import rag_stack", 0, 19, process="command"),
        stage("fetch generator", 19, 1, process="command", **fetched),
        *({**each, "start_seconds": each["start_seconds"] + 20} for each in replica),
    ]
    load = {"started_at": 120.0, "ready_at": 140.0, "stages": replica}
    load["command"] = {"started_at": 100.0, "ready_at": 140.0, "stages": command}
    return Start(number, arm, load, asked_s=140.0, answered_s=140.0 + answer_s, answer_sha256="a", cpu_s=30.0)


def test_both_wholes_add_up() -> None:
    one = start(gap_s=2, weights_s=3)
    assert (one.replica().seconds, one.whole().seconds) == (20, 41)
    assert one.replica().unnamed_share == pytest.approx(0.1)
    assert one.whole().unnamed_share == pytest.approx(2 / 41)


def test_artifacts_count_where_the_start_waits_for_them() -> None:
    """The index opens beside the imports, so that nothing waits for it."""
    one = start(weights_s=3)
    assert artifact_share(one.replica()) == pytest.approx(3 / 20)
    assert artifact_share(one.whole()) == pytest.approx(4 / 41)


def test_the_goals_take_the_worse_arm_and_the_worse_whole() -> None:
    result = build_report([start(0, "empty", gap_s=4), start(0, "cached", gap_s=0, weights_s=3)])
    assert result.goals["coldstart.unnamed_share"].value == pytest.approx(0.2)
    assert result.goals["coldstart.artifact_share_cached"].value == pytest.approx(0.15)
    assert report.exit_code(result) == 1


def test_good_starts_meet_the_goals() -> None:
    result = build_report([start(n, arm, weights_s=0.2, answer_s=3) for n in range(2) for arm in ("empty", "cached")])
    assert result.rounds == 2
    assert result.samples[0]["waited_s command: import rag_stack"] == 19
    assert report.exit_code(result) == 0


def test_an_arm_that_was_not_measured_misses_its_goal() -> None:
    result = build_report([start(0, "empty")])
    assert result.goals["coldstart.artifact_share_cached"].value is None
    assert report.exit_code(result) == 1


def test_arms_that_are_not_what_they_say_do_not_count() -> None:
    empty, cached = start(arm="empty"), start(arm="cached")
    assert arms_agree([empty, cached])
    assert not arms_agree([empty, replace(cached, answer_sha256="b")])
    assert not arms_agree([replace(empty, arm="cached")])
    assert not arms_agree([replace(cached, arm="empty")])


def test_the_median_start_is_shown() -> None:
    starts = [start(0, answer_s=9), start(1, answer_s=2), start(2, answer_s=5)]
    assert middle(starts, "cached") is starts[2]
    assert middle(starts, "empty") is None


def test_the_picture_shows_the_measured_arms(tmp_path: Path) -> None:
    starts = [start(0, "empty"), start(0, "cached")]
    report.write(build_report(starts), draw(starts), directory=tmp_path)
    assert (tmp_path / "coldstart.png").stat().st_size > 10_000
    assert len(draw(starts).axes) == 2
    assert len(draw(starts[:1]).axes) == 1
