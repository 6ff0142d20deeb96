"""The figures and the picture of `loadtests.chaos`."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from loadtests import report
from loadtests.chaos_client import Asked
from loadtests.chaos_schedule import BREAKS_STREAMS
from loadtests.chaos_verdict import Struck, Violation, excuse

_FAULTS_A_MINUTE = 6
# Tries that fail so long after a fault are counted as its.
_AFTER_S = 6.0


@dataclass(frozen=True)
class Run:
    """What happened, on the monotonic clock."""

    began_s: float
    ended_s: float = 0.0
    asked: tuple[Asked, ...] = ()
    violations: tuple[Violation, ...] = ()
    struck: list[Struck] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def build_report(run: Run, *, seed: int, minutes: float) -> report.Report:
    """An arm a kind of fault, and one of the whole run; a sample a fault."""
    names = sorted({struck.name for struck in run.struck})
    arms = {name: _of_kind(run, name) for name in names}
    return report.Report(
        name="chaos",
        machine=report.machine(),
        rounds=1,
        samples=[_sample(run, struck) for struck in run.struck],
        arms={"run": {**_of_run(run), "seed": seed, "minutes": minutes}, **arms},
        goals={
            "chaos.violations": report.Goal(len(run.violations), "<= 0"),
            "chaos.faults": report.Goal(len(run.struck), f">= {math.floor(_FAULTS_A_MINUTE * minutes)}"),
        },
    )


def _of_run(run: Run) -> Mapping[str, report.Value]:
    endings = Counter(each.ending for each in run.asked)
    rules = Counter(violation.rule for violation in run.violations)
    excused = Counter(excuse(each, run.struck) for each in run.asked if each.ending in ("broken", "error frame"))
    return {
        "requests": len(run.asked),
        "failed_tries": sum(len(each.failures) for each in run.asked),
        "requests_that_needed_a_retry": sum(1 for each in run.asked if each.failures),
        "faults_skipped": len(run.skipped),
        **{f"ended: {ending}": count for ending, count in sorted(endings.items())},
        **{f"violations: {rule}": count for rule, count in sorted(rules.items())},
        **{f"streams broken by: {name or 'nothing'}": count for name, count in sorted(excused.items(), key=str)},
    }


def _of_kind(run: Run, name: str) -> Mapping[str, report.Value]:
    own = [_sample(run, struck) for struck in run.struck if struck.name == name]
    return {
        "faults": len(own),
        "failed_tries": sum(int(sample["failed_tries"] or 0) for sample in own),
        "gave_up": sum(int(sample["gave_up"] or 0) for sample in own),
        "broken_streams": sum(int(sample["broken_streams"] or 0) for sample in own),
        "longest_answer_s": max(float(sample["longest_answer_s"] or 0) for sample in own),
    }


def _sample(run: Run, struck: Struck) -> Mapping[str, report.Value]:
    near = [each for each in run.asked if each.during(struck.began_s, struck.ended_s + _AFTER_S)]
    return {
        "round": struck.number,
        "arm": struck.name,
        "at_s": round(struck.began_s - run.began_s, 2),
        "took_s": round(struck.ended_s - struck.began_s, 2),
        "detail": struck.detail,
        "failed_tries": sum(len(each.failures) for each in near),
        "gave_up": sum(1 for each in near if each.ending == "gave up"),
        "broken_streams": sum(1 for each in near if each.ending in ("broken", "error frame")),
        "longest_answer_s": round(max((each.ended_s - each.began_s for each in near), default=0.0), 2),
    }


def draw(samples: Sequence[Mapping[str, report.Value]]) -> Figure:
    """Around each fault, how long the slowest answer took and how many tries failed; below, what struck when."""
    figure = Figure(figsize=(11, 6.5), layout="tight")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    at_s = [float(sample["at_s"] or 0) for sample in samples]
    longest_s = [float(sample["longest_answer_s"] or 0) for sample in samples]
    tries = [int(sample["failed_tries"] or 0) for sample in samples]
    above.vlines(at_s, 0, longest_s, color="#b8cfe0", linewidth=2)
    above.plot(at_s, longest_s, "o", color="#2f5d80", markersize=4, label="slowest answer, with its retries, s")
    above.plot(at_s, tries, "x", color="#d1603d", markersize=5, label="failed tries")
    above.set_ylim(bottom=0)
    above.legend(loc="upper right", frameon=False)
    names = sorted({str(sample["arm"]) for sample in samples}, reverse=True)
    for sample, began_s in zip(samples, at_s, strict=True):
        name = str(sample["arm"])
        colour = "#d1603d" if name in BREAKS_STREAMS else "#2f5d80"
        width = max(2.0, float(sample["took_s"] or 0))
        below.barh(names.index(name), width, left=began_s, height=0.7, color=colour)
    below.set_yticks(range(len(names)), names, fontsize=8)
    below.set_ylim(-0.6, len(names) - 0.4)
    below.set_xlim(left=0)
    below.set_xlabel("seconds; red: faults that take a stream's process away")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
