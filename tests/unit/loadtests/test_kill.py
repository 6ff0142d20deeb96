"""What `loadtests.kill` makes of its rounds."""

from pathlib import Path

import pytest

from loadtests.kill import Round, build_report, draw, kill
from loadtests.kill_damage import Damage
from loadtests.report import exit_code

FINE = Damage(figures={"acknowledged": 3})


def _rounds(count: int, damage: Damage = FINE) -> list[Round]:
    return [Round(number, "catalog", 2, 0.5, damage) for number in range(count)]


def test_enough_rounds_without_damage_meet_the_goals() -> None:
    report = build_report(_rounds(100), facts={"store": "file"})
    assert {key: (goal.value, goal.met) for key, goal in report.goals.items()} == {
        "kill.rounds": (100, True),
        "kill.lost": (0, True),
        "kill.inconsistent": (0, True),
    }
    assert report.arms["catalog"] == {"rounds": 100, "killed": 200, "lost": 0, "inconsistent": 0, "acknowledged": 300}
    assert exit_code(report) == 0


def test_rounds_in_which_nothing_was_killed_do_not_count() -> None:
    idle = [Round(number, "catalog", 0, 0.5) for number in range(100, 200)]
    assert build_report([*_rounds(99), *idle], facts={}).goals["kill.rounds"].value == 99
    assert build_report([], facts={}).goals["kill.rounds"].value == 0


def test_the_victim_with_the_fewest_rounds_counts() -> None:
    others = [Round(number, "stores", 1, 0.5) for number in range(50)]
    assert build_report([*_rounds(100), *others], facts={}).goals["kill.rounds"].value == 50


@pytest.mark.parametrize("damage", [Damage(lost=("a promotion",)), Damage(inconsistent=("a gap",))])
def test_damage_misses_a_goal(damage: Damage) -> None:
    report = build_report([*_rounds(100), *_rounds(1, damage)], facts={})
    assert sum(not goal.met for goal in report.goals.values()) == 1
    assert exit_code(report) == 1


def test_the_picture_can_be_drawn(tmp_path: Path) -> None:
    draw(_rounds(3)).savefig(tmp_path / "kill.png")


def test_a_victim_without_processes_is_checked_too() -> None:
    class Quiet:
        name, longest_s = "quiet", 0.0

        def start(self, number: int) -> list[object]:
            return []

        def check(self, number: int) -> Damage:
            return Damage(lost=(f"{number}",))

    rounds = kill([Quiet()], count=2, seed=1)  # type: ignore[list-item]
    assert [(each.killed, each.damage.lost) for each in rounds] == [(0, ("0",)), (0, ("1",))]
