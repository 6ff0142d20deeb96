"""Filtered searches: recall against brute force and microseconds a query, by recipe and by how many rows are allowed.

`python -m loadtests.filters` draws vectors in topics, as text makes them, builds an index of each recipe, and searches
it one query at a time on one thread, with filters that allow rows at random and filters that allow whole topics. Each
arm is searched as `IndexVersion.search` does, and as FAISS does when it is but given a selector; their rounds take
turns. The goals are those of filters: exact for few rows, and no worse than without a filter for many.

Exit code 0: goals met; 1: one is missed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loadtests import report
from rag_stack.index.reader import set_search_threads
from rag_stack.index.selector import Allowed, Rows, Vectors, search_selected, selecting

K: Final = 10
TOPICS: Final = 200
# Of a vector around its topic, which is 1 long.
_SPREAD: Final = 1.2
_FEW_ROWS: Final = 20_000
_TRAINED_ROWS: Final = 50_000

Search = Callable[[faiss.Index, Vectors, Allowed], Rows]


def recipes(rows: int, d: int) -> Mapping[str, str]:
    """The recipes, and the search parameters of each."""
    lists = 2 ** round(np.log2(4 * np.sqrt(rows)) - 1)
    probes = max(8, lists // 32)
    return {
        "Flat": "",
        "HNSW32": "efSearch=128",
        f"IVF{lists},Flat": f"nprobe={probes}",
        f"IVF{lists},PQ{d // 4}x4fs,RFlat": f"nprobe={probes},k_factor_rf=40",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the report."""
    options = _parser().parse_args(arguments)
    rows, queries, rounds = (20_000, 20, 1) if options.quick else (options.rows, options.queries, options.rounds)
    set_search_threads(1)
    samples = list(_measure(rows, options.dimension, queries, rounds))
    result = report.Report(
        name="filters",
        machine=report.machine(),
        rounds=rounds,
        samples=samples,
        arms={arm: _summary(samples, arm) for arm in dict.fromkeys(str(sample["arm"]) for sample in samples)},
        goals=_goals(samples),
    )
    _print(result)
    report.write(result, _draw(result), directory=options.results)
    return report.exit_code(result)


def _measure(rows: int, d: int, count: int, rounds: int) -> Iterator[dict[str, report.Value]]:
    rng = np.random.default_rng(0)
    centres = _unit(rng.standard_normal((TOPICS, d)))
    topics = rng.integers(0, TOPICS, rows)
    vectors = _around(centres[topics], rng)
    queries = _around(centres[rng.integers(0, TOPICS, count)], rng)
    filters = dict(_filters(rows, topics, rng))
    truths = {name: _truth(vectors, queries, allowed) for name, allowed in filters.items()}
    for recipe, parameters in recipes(rows, d).items():
        index = faiss.index_factory(d, recipe, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:_TRAINED_ROWS])
        index.add(vectors)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        for round_ in range(rounds):
            for name, allowed in filters.items():
                for way, search in (("ours", _ours), ("selector only", _selector_only))[:: 1 if round_ % 2 else -1]:
                    recall, us = _search(search, index, queries, allowed, truths[name])
                    yield {
                        **{"round": round_, "arm": f"{recipe} | {name} | {way}", "recipe": recipe, "filter": name},
                        **{"way": way, "allowed": int(allowed.sum()), "recall": recall, "microseconds": us},
                    }


def _filters(rows: int, topics: npt.NDArray[np.int64], rng: np.random.Generator) -> Iterator[tuple[str, Allowed]]:
    order = rng.permutation(rows)
    for name, count in {
        **{"1 row": 1, "10 rows": 10, "0.1 %": rows // 1000, "1 %": rows // 100, "10 %": rows // 10},
        **{"30 %": rows * 3 // 10, "90 %": rows * 9 // 10},
    }.items():
        allowed = np.zeros(rows, np.bool_)
        allowed[order[:count]] = True
        yield name, allowed
    yield "1 topic", topics == 0
    yield "30 % of topics", topics < TOPICS * 3 // 10
    yield "all rows", np.ones(rows, np.bool_)


def _ours(index: faiss.Index, vector: Vectors, allowed: Allowed) -> Rows:
    return search_selected(index, vector, K, allowed)[1]


def _selector_only(index: faiss.Index, vector: Vectors, allowed: Allowed) -> Rows:
    rows: Rows = index.search(vector, K, params=selecting(index, allowed))[1]
    return rows


def _search(
    search: Search, index: faiss.Index, queries: Vectors, allowed: Allowed, truth: Sequence[set[int]]
) -> tuple[float, float]:
    """Recall, and the median microseconds of a query."""
    found, took = [], []
    for query, expected in zip(queries, truth, strict=True):
        started = time.perf_counter()
        rows = search(index, query[None], allowed)
        took.append((time.perf_counter() - started) * 1e6)
        found.append(len(expected & set(rows[0].tolist())) / len(expected))
    return statistics.fmean(found), statistics.median(took)


def _truth(vectors: Vectors, queries: Vectors, allowed: Allowed) -> list[set[int]]:
    rows = np.flatnonzero(allowed)
    scores = queries @ vectors[rows].T
    k = min(K, len(rows))
    return [set(rows[np.argpartition(-each, k - 1)[:k]].tolist()) for each in scores]


def _around(centres: Vectors, rng: np.random.Generator) -> Vectors:
    return _unit(centres + _SPREAD * _unit(rng.standard_normal(centres.shape)))


def _unit(vectors: npt.NDArray[np.floating[Any]]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def _summary(samples: Sequence[Mapping[str, report.Value]], arm: str) -> dict[str, report.Value]:
    return {
        key: statistics.median(report.column(samples, arm=arm, key=key))
        for key in ("allowed", "recall", "microseconds")
    }


def _goals(samples: Sequence[Mapping[str, Any]]) -> dict[str, report.Goal]:
    """Recall of few rows is exact; of many it is 0.95, or what the index has for all rows."""
    ours = [sample for sample in samples if sample["way"] == "ours"]
    whole = {sample["recipe"]: sample["recall"] for sample in ours if sample["filter"] == "all rows"}
    few = [each for each in ours if each["allowed"] <= _FEW_ROWS]
    many = [each for each in ours if each["allowed"] > _FEW_ROWS]
    lost = max((min(0.95, whole[each["recipe"]]) - each["recall"] for each in many), default=0.0)
    slowest_ms = max(each["microseconds"] for each in ours) / 1e3
    return {
        "filters.recall_of_few_rows": report.Goal(min(each["recall"] for each in few), ">= 0.999"),
        "filters.recall_lost_with_many_rows": report.Goal(lost, "<= 0.01"),
        "filters.slowest_median_ms": report.Goal(slowest_ms, "<= 50"),
    }


def _print(result: report.Report) -> None:
    table = Table("recipe", "filter", "rows", "recall", "(selector)", "µs", "(selector)", box=None)
    for arm, figures in result.arms.items():
        recipe, name, way = arm.split(" | ")
        if way == "ours":
            other = result.arms[f"{recipe} | {name} | selector only"]
            table.add_row(
                *(recipe, name, f"{figures['allowed']:,.0f}", f"{figures['recall']:.3f}", f"{other['recall']:.3f}"),
                *(f"{figures['microseconds']:,.0f}", f"{other['microseconds']:,.0f}"),
            )
    console = Console()
    console.print(table)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


def _draw(result: report.Report) -> Figure:
    names = list(dict.fromkeys(arm.split(" | ")[0] for arm in result.arms))
    figure = Figure(figsize=(9, 3 * len(names)), layout="constrained")
    for (left, right), recipe in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        for way, colour in (("ours", "#3f8f5f"), ("selector only", "#8c8c8c")):
            arms = {
                key.split(" | ")[1]: each for key, each in result.arms.items() if key.split(" | ")[::2] == [recipe, way]
            }
            left.plot(list(arms), [each["recall"] for each in arms.values()], "o-", color=colour, label=way)
            right.plot(list(arms), [each["microseconds"] for each in arms.values()], "o-", color=colour)
        left.set(title=f"{recipe}: recall@{K}", ylim=(-0.03, 1.03))
        right.set(title="microseconds a query", yscale="log")
        left.legend(frameon=False)
        for axes in (left, right):
            axes.tick_params(axis="x", rotation=60)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.filters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=200_000)
    add("--dimension", type=int, default=128)
    add("--queries", type=int, default=100)
    add("--rounds", type=int, default=3)
    add("--quick", action="store_true", help="one round over a small index, to see that it runs")
    add("--results", type=Path, default=report.RESULTS, help="where filters.json and filters.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
