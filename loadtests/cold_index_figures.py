"""What `loadtests.cold_index` makes of its samples: summaries, goals, and whether every answer was right."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from loadtests.report import Goal, Report, Value, column, machine

Sample: TypeAlias = Mapping[str, Value]

READ = "read:"
WARM, LIMITED, LIMITED_FAISS = "stream warm", "stream limited", "stream limited, FAISS alone"
MEMORY_OURS, MEMORY_COPY = "four processes, ours", "four processes, copies"
_SUMMED = (
    *("seconds", "cpu_s", "gb_per_s", "open_ms", "first_answer_ms", "slowest_ms", "prefault_ms", "answered_beside"),
    *("memory_bytes", "unique_bytes"),
    *("hot_p50_ms", "hot_p99_ms", "cold_p50_ms", "cold_p99_ms", "major_faults", "limit_bytes"),
)


def build_report(samples: Sequence[Sample], *, facts: Mapping[str, Value]) -> Report:
    """The report; `facts` are of the index and stand with the machine's."""
    names = list(dict.fromkeys(str(sample["arm"]) for sample in samples))
    arms: dict[str, Mapping[str, Any]] = {
        name: {key: statistics.median(values) for key in _SUMMED if (values := column(samples, arm=name, key=key))}
        for name in names
    }
    return Report(
        name="cold_index",
        machine={**machine(), **facts},
        rounds=len({sample["round"] for sample in samples}),
        samples=samples,
        arms=arms,
        goals={
            "cold_index.vs_disk_rate": Goal(vs_disk_rate(samples), ">= 0.7"),
            "cold_index.vs_copy": Goal(_ratio(samples, "copy", "ours", "seconds"), ">= 1.2"),
            "cold_index.memory_ratio_4": Goal(_ratio(samples, MEMORY_OURS, MEMORY_COPY, "memory_bytes"), "<= 0.35"),
            "cold_index.p99_ratio_beyond_memory": Goal(_ratio(samples, LIMITED, WARM, "hot_p99_ms"), "<= 3"),
        },
    )


def best_reader(samples: Sequence[Sample]) -> str | None:
    """The arm of the plain reads that is fastest by its median."""
    arms = {str(sample["arm"]) for sample in samples if str(sample["arm"]).startswith(READ)}
    return max(arms, key=lambda arm: statistics.median(column(samples, arm=arm, key="gb_per_s")), default=None)


def vs_disk_rate(samples: Sequence[Sample]) -> float | None:
    """Bytes a second of ours, from closed files to 200 answers, against the best reader of the same files."""
    best, ours = best_reader(samples), column(samples, arm="ours", key="gb_per_s")
    if best is None or not ours:
        return None
    return statistics.median(ours) / statistics.median(column(samples, arm=best, key="gb_per_s"))


def wrong(samples: Sequence[Sample]) -> list[str]:
    """What makes the figures worthless: a wrong answer, or an arm that was not what it says."""
    found = [
        f"round {sample['round']}: {sample['arm']} gave {sample['right']} right answers of {sample['asked']}"
        for sample in samples
        if sample.get("right") != sample.get("asked")
    ]
    if (beside := column(samples, arm="early", key="answered_beside")) and not any(beside):
        found.append("the prefault was over before there was an answer; take a larger index: --size-mb")
    if any(sample["whole"] for sample in samples if sample["arm"] == LIMITED):
        found.append("an index larger than its memory was prefaulted whole")
    return found


def _ratio(samples: Sequence[Sample], over: str, under: str, key: str) -> float | None:
    """The median over the rounds that have both arms; None where there is none."""
    values = {arm: {s["round"]: s.get(key) for s in samples if s["arm"] == arm} for arm in (over, under)}
    rounds = [number for number, value in values[over].items() if value is not None and values[under].get(number)]
    if not rounds:
        return None
    return statistics.median(float(values[over][n] or 0) / float(values[under][n] or 1) for n in rounds)
