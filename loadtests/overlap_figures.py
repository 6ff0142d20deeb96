"""What `loadtests.overlap` makes of its answers: the share of the possible overlap, what it costs, and the goals."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from loadtests.overlap_app import Answered
from loadtests.report import Goal, Report, Value, bootstrap_interval, machine

Sample: TypeAlias = Mapping[str, Value]

WITHOUT: Final = "without"
WITH: Final = "with"
ARMS: Final = (WITHOUT, WITH)


@dataclass(frozen=True, slots=True)
class Cell:
    """A rerank of so many seconds that leaves the first `stay` documents of `documents` in their places.

    `engine` is what reads prompts: "device", the stand-in, or "vllm". A `reranker` by name is a real one.
    """

    name: str
    seconds: float
    stay: int
    documents: int = 4
    engine: str = "device"
    reranker: str = ""
    counts: str = ""


def sample(cell: Cell, answer: Answered, *, arm: str, number: int) -> Sample:
    """One answer as a sample. The engine's part is what is left of the time to the first token."""
    return {
        "round": number,
        "arm": f"{cell.name} {arm}",
        "ttft_s": answer.ttft_s,
        "rerank_s": answer.rerank_s,
        "retrieval_s": answer.retrieval_s,
        "engine_s": answer.ttft_s - answer.retrieval_s,
    }


def possible_s(cell: Cell, without: Sample) -> float:
    """What a perfect overlap would save of one answer: the rerank, or what is known of the prompt if that is shorter.

    By the arm without prefill, so that no figure of ours is in it. Documents are about equally long here.
    """
    known = min(1.0, cell.stay / cell.documents)
    return min(float(without["rerank_s"] or 0), known * float(without["engine_s"] or 0))


def shares(cell: Cell, samples: Sequence[Sample]) -> list[float]:
    """Of each question: what was saved, over what could have been."""
    pairs = _pairs(cell, samples)
    found = []
    for without, ahead in pairs:
        possible = possible_s(cell, without)
        if possible > 0:
            found.append((float(without["ttft_s"] or 0) - float(ahead["ttft_s"] or 0)) / possible)
    return found


def costs(cell: Cell, samples: Sequence[Sample]) -> list[float]:
    """Of each question: the time to the first token with prefill over that without."""
    return [float(ahead["ttft_s"] or 0) / float(without["ttft_s"] or 1) for without, ahead in _pairs(cell, samples)]


def retrieval_share(cell: Cell, samples: Sequence[Sample]) -> float:
    """Of the time to the first token without prefill, what the rerank takes: the median."""
    own = [without for without, _ in _pairs(cell, samples)]
    return statistics.median(float(each["rerank_s"] or 0) / float(each["ttft_s"] or 1) for each in own)


def build_report(
    cells: Sequence[Cell],
    samples: Sequence[Sample],
    *,
    told: Mapping[str, Mapping[str, int]],
    facts: Mapping[str, Value],
) -> Report:
    """The report; `told` is what became of the prompts that were read ahead, by cell."""
    arms: dict[str, dict[str, Value | Sequence[float]]] = {}
    for cell in cells:
        cost, share = costs(cell, samples), shares(cell, samples)
        for arm in ARMS:
            own = [each for each in samples if each["arm"] == f"{cell.name} {arm}"]
            arms[f"{cell.name} {arm}"] = {
                key: statistics.median(float(each[key] or 0) for each in own)
                for key in ("ttft_s", "rerank_s", "engine_s")
            }
        arms[f"{cell.name} {WITH}"] |= {
            "cost": statistics.median(cost),
            "cost_95": bootstrap_interval(cost),
            "retrieval_share": retrieval_share(cell, samples),
            **({"share": statistics.median(share), "share_95": bootstrap_interval(share)} if share else {}),
            **told.get(cell.name, {}),
        }
    goals = {
        "overlap.fast_cost": Goal(_worst(cells, arms, "fast", "cost", max), "<= 1.02"),
        "overlap.share": Goal(_worst(cells, arms, "share", "share", min), ">= 0.8"),
        "overlap.wrong_cost": Goal(_worst(cells, arms, "wrong", "cost", max), "<= 1.02"),
    }
    rounds = len({each["round"] for each in samples})
    facts = {**machine(), **facts}
    return Report(name="overlap", machine=facts, rounds=rounds, samples=samples, arms=arms, goals=goals)


def differing(answers: Mapping[str, Mapping[str, Sequence[Answered]]]) -> list[str]:
    """Questions whose answer is not the same with prefill and without: sources, text and citations."""
    found = []
    for cell, arms in answers.items():
        for number, (one, other) in enumerate(zip(arms[WITHOUT], arms[WITH], strict=True)):
            if (one.sources, one.text, one.citations) != (other.sources, other.text, other.citations):
                found.append(f"{cell}, question {number + 1}")
    return found


def _pairs(cell: Cell, samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    by_arm = {arm: {s["round"]: s for s in samples if s["arm"] == f"{cell.name} {arm}"} for arm in ARMS}
    return [(by_arm[WITHOUT][n], by_arm[WITH][n]) for n in by_arm[WITHOUT] if n in by_arm[WITH]]


def _worst(
    cells: Sequence[Cell],
    arms: Mapping[str, Mapping[str, Value | Sequence[float]]],
    counts: str,
    key: str,
    worst: Callable[[Sequence[float]], float],
) -> float | None:
    values = [arms[f"{cell.name} {WITH}"].get(key) for cell in cells if cell.counts == counts]
    numbers = [value for value in values if isinstance(value, float)]
    return worst(numbers) if numbers else None
