"""What `loadtests.workload` makes of its requests: times to tokens, goodput, cached share, CPU time, errors by kind."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.report import Report, Value, machine
from loadtests.workload_load import Asked

_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Slo:
    """When an answer is good: its first token, and the mean of those after it, each within so many milliseconds."""

    ttft_ms: float
    tpot_ms: float

    def keeps(self, asked: Asked) -> bool:
        """Whether it came whole and in time. An answer of one token has no second bound."""
        came = asked.came
        if came.problem or came.ttft_ms is None or came.ttft_ms > self.ttft_ms:
            return False
        return came.tpot_ms is None or came.tpot_ms <= self.tpot_ms


@dataclass(frozen=True, slots=True)
class Run:
    """A workload that was sent. `left` requests were not asked or not answered when the time was over.

    `cpu_s` is what the processes that were named used meanwhile, None where none was named.
    """

    asked: Sequence[Asked]
    left: int
    seconds: float
    cpu_s: float | None = None


def quantile(values: Sequence[float], share: float) -> float:
    """By nearest rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def summarise(run: Run, slo: Slo) -> dict[str, Value]:
    """The figures of a run."""
    whole = [each.came for each in run.asked if not each.came.problem]
    good = sum(slo.keeps(each) for each in run.asked)
    total = len(run.asked) + run.left
    ttft = [ms for came in whole if (ms := came.ttft_ms) is not None]
    tpot = [ms for came in whole if (ms := came.tpot_ms) is not None]
    gaps = [gap for came in whole for gap in came.gaps_ms]
    prompt = sum(int(came.usage.get("prompt_tokens") or 0) for came in whole)
    output = sum(came.output_tokens for came in whole)
    figures: dict[str, Value] = {
        "requests": total,
        "answered": len(whole),
        "unanswered_in_time": run.left,
        "seconds": run.seconds,
        "requests_per_s": len(whole) / run.seconds,
        "output_tokens_per_s": output / run.seconds,
        "goodput_per_s": good / run.seconds,
        "goodput_share": good / total if total else None,
        "cached_share": sum(came.cached_tokens for came in whole) / prompt if prompt else None,
        "prompt_tokens": prompt / len(whole) if whole else None,
        "output_tokens": output / len(whole) if whole else None,
        "cpu_ms_an_answer": run.cpu_s * 1e3 / len(whole) if run.cpu_s is not None and whole else None,
    }
    for name, values in (("ttft_ms", ttft), ("tpot_ms", tpot), ("gap_ms", gaps)):
        figures[f"{name}_mean"] = statistics.fmean(values) if values else None
        for label, share in _QUANTILES.items():
            figures[f"{name}_{label}"] = quantile(values, share)
    for kind, count in sorted(errors(run).items()):
        figures[f"errors: {kind}"] = count
    return figures


def errors(run: Run) -> Counter[str]:
    """How many requests failed, by kind; an HTTP status that is no refusal is a kind of its own."""
    return Counter(
        f"status {each.came.status}" if each.came.problem == "status" else each.came.problem
        for each in run.asked
        if each.came.problem
    )


def build_report(run: Run, slo: Slo, *, arm: str) -> Report:
    """Without goals: what a workload should reach is for who chose it to say."""
    return Report(
        name="workload",
        machine=machine(),
        rounds=1,
        samples=[sample(each, arm=arm) for each in run.asked],
        arms={arm: summarise(run, slo)},
        goals={},
    )


def sample(asked: Asked, *, arm: str) -> dict[str, Value]:
    """One request, for the report."""
    came = asked.came
    return {
        "round": 0,
        "arm": arm,
        "session": asked.session,
        "turn": asked.turn,
        "at_s": round(asked.at_s, 4),
        "max_tokens": asked.max_tokens,
        "status": came.status,
        "problem": came.problem,
        "ttft_ms": came.ttft_ms,
        "tpot_ms": came.tpot_ms,
        "total_ms": came.total_ms,
        "prompt_tokens": came.usage.get("prompt_tokens"),
        "cached_tokens": came.cached_tokens,
        "output_tokens": came.output_tokens,
    }


def lines(figures: dict[str, Value]) -> list[str]:
    """For people."""
    return [
        f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}"
        for name, value in figures.items()
        if value is not None
    ]
