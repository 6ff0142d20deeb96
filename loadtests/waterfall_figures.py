"""What one measured wake says, from the replica's own report and from outside, and the benchmark's report of many."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from loadtests.coldstart_figures import spans_of
from loadtests.report import Goal, Report, Value, machine
from rag_stack.timeline import Breakdown, Span, break_down

ArmName: TypeAlias = Literal["bare", "spawn", "fork", "standby"]
ARMS: tuple[ArmName, ...] = ("bare", "spawn", "fork", "standby")


@dataclass(frozen=True, slots=True)
class Wake:
    """From zero to a first token. `load` is the key of that name in GET /v1/models/{id}, and empty for a bare vLLM.

    asked_s   Unix seconds when the question was sent that caused the start
    standby   what it said of itself before
    """

    round: int
    arm: ArmName
    seconds: float
    answer_sha256: str
    cpu_s: float
    load: Mapping[str, Any] = field(default_factory=dict)
    asked_s: float = 0.0
    standby: Mapping[str, Any] = field(default_factory=dict)

    def breakdown(self) -> Breakdown:
        """From the question to the first token, with what lies before and after the replica's start."""
        end_s = self.asked_s + self.seconds
        if not self.load:
            return break_down([Span("start vLLM", 0.0, self.seconds, "bare")], start_s=0.0, end_s=self.seconds)
        began_s, ready_s = float(self.load["started_at"]), float(self.load["ready_at"])
        around = [
            Span("decide to start", self.asked_s, began_s, "Serve"),
            Span("put into service and answer", ready_s, end_s, "Serve"),
        ]
        return break_down([*spans_of(self.load), *around], start_s=self.asked_s, end_s=end_s)


def build_report(wakes: Sequence[Wake]) -> Report:
    """Samples, medians and goals. A ratio is the median of those of the rounds, each of arms that ran side by side."""
    samples = [_sample(wake) for wake in wakes]
    arms: dict[str, dict[str, Value | Sequence[float]]] = {
        arm: _summary([sample for sample in samples if sample["arm"] == arm]) for arm in ARMS
    }
    goals = {
        "waterfall.fork_vs_bare": Goal(_ratio(wakes, "fork"), "<= 1.15"),
        "waterfall.standby_vs_bare": Goal(_ratio(wakes, "standby"), "<= 0.3"),
    }
    rounds = len({wake.round for wake in wakes})
    return Report(name="waterfall", machine=machine(), rounds=rounds, samples=samples, arms=arms, goals=goals)


def answers_agree(wakes: Sequence[Wake]) -> bool:
    """Whether every start gave the same first answer."""
    return len({wake.answer_sha256 for wake in wakes}) == 1


def middle(wakes: Sequence[Wake], arm: ArmName) -> Wake | None:
    """The wake of an arm that took the median time; of an even number, the shorter."""
    own = sorted((wake for wake in wakes if wake.arm == arm), key=lambda wake: wake.seconds)
    return own[(len(own) - 1) // 2] if own else None


def _ratio(wakes: Sequence[Wake], arm: ArmName) -> float | None:
    bare = {wake.round: wake.seconds for wake in wakes if wake.arm == "bare"}
    ratios = [wake.seconds / bare[wake.round] for wake in wakes if wake.arm == arm and wake.round in bare]
    return statistics.median(ratios) if ratios else None


def _sample(wake: Wake) -> dict[str, Value]:
    whole = wake.breakdown()
    figures: dict[str, Value] = {
        "round": wake.round,
        "arm": wake.arm,
        "seconds": wake.seconds,
        "cpu_s": wake.cpu_s,
        "unnamed_share": whole.unnamed_share,
        "standby_memory_bytes": wake.standby.get("memory_bytes"),
        "standby_weights_bytes": wake.standby.get("weights_bytes"),
    }
    for stage in whole.stages:
        key = f"waited_s {stage.span.process}: {stage.span.name}"
        figures[key] = float(figures.get(key) or 0.0) + stage.critical_s
    return figures


def _summary(samples: Sequence[Mapping[str, Value]]) -> dict[str, Value | Sequence[float]]:
    keys = [key for key in (samples[0] if samples else {}) if key not in ("round", "arm")]
    return {key: statistics.median(float(sample.get(key) or 0.0) for sample in samples) for key in keys}
