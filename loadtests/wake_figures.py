"""What `loadtests.wake` measured, and its report."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from loadtests.report import Goal, Report, Value, machine
from loadtests.wake_clients import Burst

ArmName: TypeAlias = Literal["bare", "stack", "standby"]
ARMS: tuple[ArmName, ...] = ("bare", "stack", "standby")


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """One start of an arm, from the first question (`bare`: from the command) to its first token."""

    round: int
    arm: ArmName
    seconds: float
    answer_sha256: str


@dataclass(frozen=True, slots=True)
class Crowd:
    """Many clients at zero replicas. `wakes` are the replicas that were started, `warm_sha256` a later answer."""

    round: int
    burst: Burst
    wakes: int
    warm_sha256: str

    def refused(self) -> int:
        """Requests that were not answered, and not for a timeout."""
        return sum(1 for asked in self.burst.asked if asked.problem not in ("", "timeout"))

    def timeouts(self) -> int:
        """Clients that heard nothing for 15 s."""
        return sum(1 for asked in self.burst.asked if asked.problem == "timeout")

    def agrees(self) -> bool:
        """Whether all answers are the one that the warm engine gives."""
        return {asked.answer_sha256 for asked in self.burst.asked if not asked.problem} <= {self.warm_sha256}

    def as_warm(self) -> float:
        """The share of the answers that are the one which the warm engine gives to one client alone.

        In a batch the engine's arithmetic rounds otherwise, so that a greedy answer may take another word.
        """
        answers = [asked.answer_sha256 for asked in self.burst.asked if not asked.problem]
        return answers.count(self.warm_sha256) / len(answers) if answers else 0.0

    def sample(self) -> dict[str, Value]:
        """One row of the report."""
        firsts = [asked.first_s for asked in self.burst.asked if not asked.problem]
        return {
            "round": self.round,
            "arm": "crowd",
            "clients": len(self.burst.asked),
            "refused": self.refused(),
            "client_timeouts": self.timeouts(),
            "wakes": self.wakes,
            "as_warm": self.as_warm(),
            "searches": self.burst.searches,
            "searches_failed": self.burst.searches_failed,
            "first_s": min(firsts, default=None),
            "last_first_s": max(firsts, default=None),
            "problems": "; ".join(sorted({asked.problem for asked in self.burst.asked if asked.problem})) or None,
        }


def build_report(starts: Sequence[FirstAnswer], crowds: Sequence[Crowd]) -> Report:
    """Ratios are medians over rounds, each of arms of one round; the counts are those of the worst round."""
    samples: list[dict[str, Value]] = [
        {"round": start.round, "arm": start.arm, "seconds": start.seconds} for start in starts
    ]
    samples += [crowd.sample() for crowd in crowds]
    goals = {
        "wake.refused": Goal(_worst([crowd.refused() for crowd in crowds]), "<= 0"),
        "wake.wakes": Goal(_worst([crowd.wakes for crowd in crowds]), "<= 1"),
        "wake.client_timeouts": Goal(_worst([crowd.timeouts() for crowd in crowds]), "<= 0"),
        "wake.search_failed_while_cold": Goal(_searches_failed(crowds), "<= 0"),
        "wake.vs_bare_start": Goal(ratio(starts, "stack"), "<= 1.15"),
        "wake.standby_vs_bare_start": Goal(ratio(starts, "standby"), "<= 0.3"),
    }
    arms: dict[str, dict[str, Value | Sequence[float]]] = {
        arm: {"seconds": statistics.median(own)}
        for arm in ARMS
        if (own := [start.seconds for start in starts if start.arm == arm])
    }
    rounds = len({start.round for start in starts} | {crowd.round for crowd in crowds})
    return Report(name="wake", machine=machine(), rounds=rounds, samples=samples, arms=arms, goals=goals)


def arms_agree(starts: Sequence[FirstAnswer], crowds: Sequence[Crowd]) -> bool:
    """Whether every start gave the same first answer, and every crowd that of its warm engine."""
    return len({start.answer_sha256 for start in starts}) <= 1 and all(crowd.agrees() for crowd in crowds)


def ratio(starts: Sequence[FirstAnswer], arm: ArmName) -> float | None:
    """An arm's time over the bare start's of the same round; the median of the rounds."""
    bare = {start.round: start.seconds for start in starts if start.arm == "bare"}
    ratios = [start.seconds / bare[start.round] for start in starts if start.arm == arm and start.round in bare]
    return statistics.median(ratios) if ratios else None


def _worst(counts: Sequence[int]) -> float | None:
    return max(counts) if counts else None


def _searches_failed(crowds: Sequence[Crowd]) -> float | None:
    """Nothing is shown by searches that were not made."""
    if not crowds or any(not crowd.burst.searches for crowd in crowds):
        return None
    return max(crowd.burst.searches_failed for crowd in crowds)
