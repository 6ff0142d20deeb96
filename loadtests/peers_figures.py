"""What `loadtests.peers` makes of its visits: CPU time an answer without the embedding, latency, nDCG, goals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.report import Goal, Report, Value, machine

CUT: Final = 10
ENGINE: Final = "engine"
OURS: Final = "ours"


@dataclass(frozen=True, slots=True)
class Visit:
    """One arm asked the same questions once. CPU seconds are of all processes of the arm; `whole` answers came whole.

    `embedding_cpu_s` is the part of `cpu_s` that the threads took that embedded, `engine_cpu_s` that of an engine in
    the serving process.
    """

    round: int
    arm: str
    concurrency: int
    answers: int
    whole: int
    cpu_s: float
    embedding_cpu_s: float
    seconds: float
    latencies_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    engine_cpu_s: float = 0.0

    @property
    def orchestration_ms(self) -> float:
        """CPU milliseconds an answer, without those of embedding its question and of the engine."""
        return (self.cpu_s - self.embedding_cpu_s - self.engine_cpu_s) * 1e3 / self.answers

    def sample(self) -> dict[str, Value]:
        """For the report."""
        return {
            "round": self.round,
            "arm": self.arm,
            "concurrency": self.concurrency,
            "answers": self.answers,
            "whole": self.whole,
            "cpu_ms": self.cpu_s * 1e3 / self.answers,
            "embedding_cpu_ms": self.embedding_cpu_s * 1e3 / self.answers,
            "engine_cpu_ms": self.engine_cpu_s * 1e3 / self.answers,
            "orchestration_cpu_ms": self.orchestration_ms,
            "latency_ms": statistics.median(self.latencies_ms),
            "ttft_ms": statistics.median(self.ttft_ms),
            "answers_per_s": self.answers / self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Sources:
    """What a system found for the judged questions, and what its prompts held for a few of them, by question.

    `expected` are the documents that it says it found for those few, as many as a prompt takes.
    """

    arm: str
    found: Mapping[str, Sequence[str]]
    in_prompt: Mapping[str, frozenset[str]]
    expected: Mapping[str, frozenset[str]]


def ndcg(found: Sequence[str], relevant: Mapping[str, int], *, cut: int = CUT) -> float:
    """Normalised discounted cumulative gain as BEIR has it: gain by judgement, discount log2(rank + 1)."""
    gained = sum(relevant.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(found[:cut]))
    best = sorted(relevant.values(), reverse=True)[:cut]
    possible = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))
    return gained / possible if possible else 0.0


def mean_ndcg(found: Mapping[str, Sequence[str]], relevant: Mapping[str, Mapping[str, int]]) -> float | None:
    """Over all judged questions; one without an answer counts 0. None where nobody has judged, or nobody searched."""
    if not relevant or not found:
        return None
    return statistics.fmean(ndcg(found.get(query, ()), judged) for query, judged in relevant.items())


def agree(visits: Sequence[Visit], sources: Sequence[Sources], *, top_k: int) -> list[str]:
    """Why the arms did not do the same work; nothing where they did.

    Each answer came whole, each prompt held what its system had found, `top_k` documents, and the peers, which all
    search the same vectors exactly, found the same. Ours may find others, where its recipe is more than vectors.
    """
    problems = [
        f"{each.arm}: {each.answers - each.whole} of {each.answers} answers did not come whole"
        for each in visits
        if each.whole != each.answers
    ]
    for each in sources:
        for query, held in each.in_prompt.items():
            if held != each.expected[query]:
                problems.append(f"{each.arm}: question {query} was given {sorted(held)}, found was something else")
            if len(each.expected[query]) > top_k:
                problems.append(f"{each.arm}: question {query} was given more than {top_k} documents")
    peers = [each for each in sources if each.arm != OURS]
    problems += [
        f"{peers[0].arm} and {other.arm} share {share:.2f} of their documents, expected all"
        for other in peers[1:]
        if (share := overlap(peers[0], other)) < 1.0
    ]
    return problems


def overlap(first: Sources, second: Sources) -> float:
    """The share of documents that two systems' prompts have in common, over the questions that both were asked."""
    both = first.in_prompt.keys() & second.in_prompt.keys()
    shares = [
        len(first.in_prompt[query] & second.in_prompt[query])
        / max(1, len(first.in_prompt[query] | second.in_prompt[query]))
        for query in both
    ]
    return statistics.fmean(shares) if shares else math.nan


def build_report(
    visits: Sequence[Visit], sources: Sequence[Sources], relevant: Mapping[str, Mapping[str, int]]
) -> Report:
    """The figures of what has been measured so far."""
    quality = {each.arm: mean_ndcg(each.found, relevant) for each in sources}
    ours = next((each for each in sources if each.arm == OURS), None)
    arms: dict[str, dict[str, Value | Sequence[float]]] = {}
    for arm in dict.fromkeys(each.arm for each in visits):
        arms[arm] = _summary(arm, visits)
        arms[arm]["ndcg_at_10"] = quality.get(arm)
        own = next((each for each in sources if each.arm == arm), None)
        if ours is not None and own is not None:
            arms[arm]["documents_shared_with_ours"] = round(overlap(own, ours), 3)
    best = [value for arm, value in quality.items() if arm != OURS and value is not None]
    own_quality = quality.get(OURS)
    delta = None if own_quality is None or not best else own_quality - max(best)
    return Report(
        name="peers",
        machine=machine(),
        rounds=len({each.round for each in visits}),
        samples=[each.sample() for each in visits],
        arms=arms,
        goals={
            "peers.cpu_ratio": Goal(cpu_ratio(visits), ">= 5"),
            "peers.ndcg_delta": Goal(delta, ">= 0"),
        },
    )


def cpu_ratio(visits: Sequence[Visit]) -> float | None:
    """The best peer's orchestration over ours, at the concurrency where that is least. None without either."""
    ratios = []
    for concurrency in {each.concurrency for each in visits}:
        costs = {arm: cost for arm in _arms(visits) if (cost := orchestration(visits, arm, concurrency)) is not None}
        peers = [cost for arm, cost in costs.items() if arm not in (OURS, ENGINE)]
        if peers and costs.get(OURS):
            ratios.append(min(peers) / costs[OURS])
    return min(ratios) if ratios else None


def orchestration(visits: Sequence[Visit], arm: str, concurrency: int) -> float | None:
    """The median over an arm's visits of its CPU milliseconds an answer, without the embedding."""
    values = [each.orchestration_ms for each in visits if each.arm == arm and each.concurrency == concurrency]
    return statistics.median(values) if values else None


def beyond_engine(visits: Sequence[Visit], arm: str, concurrency: int) -> float | None:
    """The median latency of an arm's answers less that of the engine alone."""
    own, engine = (
        [ms for each in visits if each.arm == name and each.concurrency == concurrency for ms in each.latencies_ms]
        for name in (arm, ENGINE)
    )
    return statistics.median(own) - statistics.median(engine) if own and engine else None


def _summary(arm: str, visits: Sequence[Visit]) -> dict[str, Value | Sequence[float]]:
    summary: dict[str, Value | Sequence[float]] = {}
    for concurrency in sorted({each.concurrency for each in visits if each.arm == arm}):
        own = [each for each in visits if each.arm == arm and each.concurrency == concurrency]
        samples = [each.sample() for each in own]
        for key in (
            "orchestration_cpu_ms",
            "embedding_cpu_ms",
            "engine_cpu_ms",
            "latency_ms",
            "ttft_ms",
            "answers_per_s",
        ):
            values = [float(sample[key] or 0.0) for sample in samples]
            summary[f"{key}_at_{concurrency}"] = statistics.median(values)
        if arm != ENGINE:
            summary[f"beyond_engine_ms_at_{concurrency}"] = beyond_engine(visits, arm, concurrency)
    return summary


def _arms(visits: Sequence[Visit]) -> list[str]:
    return list(dict.fromkeys(each.arm for each in visits))
