"""How good rankings are, and the report of `loadtests.quality`."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.report import Goal, Report, Value, bootstrap_interval, machine

NDCG_GOAL = ">= 0.03"
DENSE, LEXICAL, DEFAULT, RERANKED = "dense", "lexical", "default", "reranked"


@dataclass(frozen=True, slots=True)
class Ranked:
    """What one arm found for one question: figures of the first 10, and the recall of the first 100."""

    corpus: str
    arm: str
    question: str
    ndcg: float
    recall_10: float
    recall_100: float
    reciprocal: float
    cpu_ms: float


def ndcg(found: Sequence[str], relevant: Mapping[str, int], *, at: int = 10) -> float:
    """As trec_eval has it: linear gains, discounted by log2(rank + 1)."""
    gains = [relevant.get(each, 0) for each in found[:at]]
    ideal = sorted(relevant.values(), reverse=True)[:at]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def recall(found: Sequence[str], relevant: Mapping[str, int], *, at: int) -> float:
    """The share of the relevant that is among the first."""
    return len(set(found[:at]) & set(relevant)) / len(relevant) if relevant else 0.0


def reciprocal_rank(found: Sequence[str], relevant: Mapping[str, int], *, at: int = 10) -> float:
    """1 / the rank of the first that is relevant; 0 where none of the first is."""
    return next((1 / rank for rank, each in enumerate(found[:at], start=1) if each in relevant), 0.0)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return statistics.fmean(values) if values else math.nan


def gain(ranked: Sequence[Ranked], *, corpus: str, arm: str, over: str) -> list[float]:
    """By question: how much better an arm's nDCG@10 is than another's."""
    by_question = {each.question: each.ndcg for each in ranked if (each.corpus, each.arm) == (corpus, over)}
    own = {each.question: each.ndcg for each in ranked if (each.corpus, each.arm) == (corpus, arm)}
    return [own[question] - by_question[question] for question in own if question in by_question]


def arms(ranked: Sequence[Ranked]) -> dict[str, dict[str, Value]]:
    """The means of each arm on each corpus."""
    names = dict.fromkeys((each.corpus, each.arm) for each in ranked)
    return {f"{corpus}: {arm}": _means(ranked, corpus, arm) for corpus, arm in names}


def _means(ranked: Sequence[Ranked], corpus: str, arm: str) -> dict[str, Value]:
    own = [each for each in ranked if (each.corpus, each.arm) == (corpus, arm)]
    return {
        "questions": len(own),
        "ndcg_10": round(mean([each.ndcg for each in own]), 4),
        "recall_10": round(mean([each.recall_10 for each in own]), 4),
        "recall_100": round(mean([each.recall_100 for each in own]), 4),
        "mrr_10": round(mean([each.reciprocal for each in own]), 4),
        "cpu_ms": round(statistics.median(each.cpu_ms for each in own), 3),
    }


def build_report(
    ranked: Sequence[Ranked],
    *,
    corpus: str,
    train: Mapping[str, float],
    threshold: Mapping[str, Mapping[str, Value]],
    facts: Mapping[str, Value],
) -> Report:
    """The figures, with what was tried on the train split and what a threshold leaves out."""
    gains = gain(ranked, corpus=corpus, arm=DEFAULT, over=DENSE)
    low, high = bootstrap_interval(gains, statistic=statistics.fmean)
    tried = {f"train: {name}": {"ndcg_10": round(value, 4)} for name, value in train.items()}
    summary = {"gain": {"ndcg_10": round(mean(gains), 4), "low": round(low, 4), "high": round(high, 4)}}
    cut = {f"threshold: {name}": dict(figures) for name, figures in threshold.items()}
    return Report(
        name="quality",
        machine={**machine(), **facts},
        rounds=1,
        samples=[
            {
                "round": 0,
                "arm": f"{each.corpus}: {each.arm}",
                "question": each.question,
                "ndcg_10": round(each.ndcg, 4),
                "recall_100": round(each.recall_100, 4),
                "cpu_ms": round(each.cpu_ms, 3),
            }
            for each in ranked
        ],
        arms={**arms(ranked), **tried, **summary, **cut},
        goals={"quality.ndcg_gain": Goal(mean(gains) if gains else None, NDCG_GOAL)},
    )
