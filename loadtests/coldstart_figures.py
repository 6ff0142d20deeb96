"""What one measured start says, from the server's own report and from outside, and the benchmark's report of many."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from loadtests.report import Goal, Report, Value, column, machine
from rag_stack.timeline import Breakdown, Span, break_down

ArmName: TypeAlias = Literal["empty", "cached"]
ARMS: tuple[ArmName, ...] = ("empty", "cached")


@dataclass(frozen=True, slots=True)
class Start:
    """One start. `load` is the key of that name in GET /v1/models/{id}; times are Unix seconds.

    asked_s, answered_s   when a client sent its first question and had the first token of its answer
    """

    round: int
    arm: ArmName
    load: Mapping[str, Any]
    asked_s: float
    answered_s: float
    answer_sha256: str
    cpu_s: float

    def replica(self) -> Breakdown:
        """From the start of the replica's process to its first token."""
        return _breakdown(self.load, until_s=float(self.load["ready_at"]))

    def whole(self) -> Breakdown:
        """From the start of the `rag-stack serve` process to a client's first token."""
        client = Span("first answer", self.asked_s, self.answered_s, "client")
        return _breakdown(self.load["command"], client, until_s=self.answered_s)

    def fetched_bytes(self) -> int:
        """What came from beyond the node's cache."""
        stages = self.load["command"]["stages"]
        return sum(stage.get("size_bytes", 0) for stage in stages if stage["name"].startswith("fetch "))


def artifact_share(breakdown: Breakdown) -> float:
    """The part of a whole in which the start waited for artifacts: fetched, opened, prefaulted or loaded."""
    waited = sum(stage.critical_s for stage in breakdown.stages if stage.span.kind)
    return waited / breakdown.seconds if breakdown.seconds > 0 else 0.0


def build_report(starts: Sequence[Start]) -> Report:
    """Samples, medians and goals. The goals take the worse of the two wholes, and of the arms."""
    samples = [_sample(start) for start in starts]
    arms: dict[str, dict[str, Value | Sequence[float]]] = {
        arm: _summary([s for s in samples if s["arm"] == arm]) for arm in ARMS
    }
    unnamed = [
        statistics.median(values)
        for arm in ARMS
        for key in ("replica_unnamed_share", "whole_unnamed_share")
        if (values := column(samples, arm=arm, key=key))
    ]
    cached = [
        statistics.median(values)
        for key in ("replica_artifact_share", "whole_artifact_share")
        if (values := column(samples, arm="cached", key=key))
    ]
    goals = {
        "coldstart.unnamed_share": Goal(max(unnamed, default=None), "<= 0.05"),
        "coldstart.artifact_share_cached": Goal(max(cached, default=None), "<= 0.05"),
    }
    rounds = len({start.round for start in starts})
    return Report(name="coldstart", machine=machine(), rounds=rounds, samples=samples, arms=arms, goals=goals)


def arms_agree(starts: Sequence[Start]) -> bool:
    """Whether every start gave the same first answer, and each arm was what it says: an empty or a filled cache."""
    answers = {start.answer_sha256 for start in starts}
    return len(answers) == 1 and all((start.fetched_bytes() > 0) == (start.arm == "empty") for start in starts)


def middle(starts: Sequence[Start], arm: ArmName) -> Start | None:
    """The start of an arm whose whole took the median time; of an even number, the shorter."""
    own = sorted((start for start in starts if start.arm == arm), key=lambda start: start.whole().seconds)
    return own[(len(own) - 1) // 2] if own else None


def spans_of(card: Mapping[str, Any]) -> list[Span]:
    """The stages of a start that GET /v1/models/{id} shows, as spans again."""
    began_s = float(card["started_at"])
    return [_span(stage, began_s) for stage in card["stages"]]


def _breakdown(card: Mapping[str, Any], *more: Span, until_s: float) -> Breakdown:
    return break_down([*spans_of(card), *more], start_s=float(card["started_at"]), end_s=until_s)


def _span(stage: Mapping[str, Any], began_s: float) -> Span:
    start_s = began_s + float(stage["start_seconds"])
    return Span(
        name=stage["name"],
        start_s=start_s,
        end_s=start_s + float(stage["seconds"]),
        process=stage["process"],
        kind=stage.get("kind", ""),
        size_bytes=stage.get("size_bytes", 0),
        source=stage.get("source", ""),
        beside=stage.get("beside", False),
    )


def _sample(start: Start) -> dict[str, Value]:
    replica, whole = start.replica(), start.whole()
    figures: dict[str, Value] = {
        "round": start.round,
        "arm": start.arm,
        "replica_s": replica.seconds,
        "replica_unnamed_share": replica.unnamed_share,
        "replica_artifact_share": artifact_share(replica),
        "whole_s": whole.seconds,
        "whole_unnamed_share": whole.unnamed_share,
        "whole_artifact_share": artifact_share(whole),
        "fetched_bytes": start.fetched_bytes(),
        "cpu_s": start.cpu_s,
    }
    for stage in whole.stages:
        key = f"waited_s {stage.span.process}: {stage.span.name}"
        figures[key] = float(figures.get(key) or 0.0) + stage.critical_s
    return figures


def _summary(samples: Sequence[Mapping[str, Value]]) -> dict[str, Value | Sequence[float]]:
    keys = [key for key in (samples[0] if samples else {}) if key not in ("round", "arm")]
    return {key: statistics.median(float(sample.get(key) or 0.0) for sample in samples) for key in keys}
