"""The index on a GPU against the same index on the host: microseconds a query, recall, device memory.

`python -m loadtests.gpu_retrieval` needs a FAISS with GPUs (faiss-gpu-cuvs) and a device. Over the wink word vectors it
places exact vectors, inverted lists, CAGRA's graph, and, in a third of the memory that the lists take, the hot lists of
half of the queries. Every arm answers the other half one at a time and 32 in a call; host and device take turns. What a
placement takes of the device, its first search in it, is the difference of the driver's free memory, and is held
against what was planned for it: a budget that is not kept is the engine's memory.

Exit code 0: goals met; 1: one is missed; 2: an arm on the device finds other than its index on the host; 3: no GPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import torch
from matplotlib.figure import Figure

from loadtests import report
from loadtests.retrieval_data import AT, DataError, Problem, recall_of, wink
from rag_stack.index.gpu_index import FIXED_BYTES, Device, gpu_device, place, plan
from rag_stack.index.gpu_placement import Rows, Vectors, VisitCounts
from rag_stack.index.reader import set_search_threads

NO_GPU: Final = 3
_CACHE: Final = Path(__file__).parent.parent / "var" / "cache" / "retrieval"
_AMPLE_BYTES: Final = 64 << 30
_BATCHES: Final = (1, 32)
# The device adds in another order, so that what is equally near may come in another one.
_LOST: Final = 0.005
_NPROBE: Final = 48

Search = Callable[[Vectors, int], tuple[Vectors, Rows]]


@dataclass(frozen=True, slots=True)
class Arm:
    """An index on the host and what was placed of it; `exact` where both must find the same."""

    name: str
    host: Search
    device: Search
    planned_bytes: int
    taken_bytes: int
    exact: bool = True


def arms_of(problem: Problem, device: Device, free_bytes: Callable[[], int]) -> Iterator[Arm]:
    """Each kind of placement. Blocking: builds the indexes. Raises RuntimeError where the device refuses.

    `free_bytes` is what the device has left.
    """
    d = problem.base.shape[1]
    flat = faiss.IndexFlatIP(d)
    flat.add(problem.base)
    lists = 1 << (int((4 * len(problem.base)) ** 0.5).bit_length() - 1)
    inverted = faiss.index_factory(d, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    inverted.train(problem.base)
    inverted.add(problem.base)
    inverted.nprobe = min(_NPROBE, lists)
    counts = VisitCounts(lists)
    counts.observe(inverted.quantizer.search(problem.tune, inverted.nprobe)[1])
    fixed = FIXED_BYTES + 2 * lists * d * 4
    third = fixed + (plan(inverted, budget_bytes=_AMPLE_BYTES).size_bytes - fixed) // 3
    for name, index, budget_bytes, cagra in (
        ("flat", flat, _AMPLE_BYTES, False),
        ("ivf", inverted, _AMPLE_BYTES, False),
        ("cagra", flat, _AMPLE_BYTES, True),
        ("hot_lists", inverted, third, False),
    ):
        before = free_bytes()
        placed = place(index, device, budget_bytes=budget_bytes, cagra=cagra, counts=counts)
        if placed is None or placed.plan.kind != name:
            raise RuntimeError(f"{name} is not placed, see the warning above")
        placed.search(problem.tune[:32], AT)
        taken = before - free_bytes()
        yield Arm(name, _kept(index), placed.search, placed.plan.size_bytes, taken, exact=name != "cagra")


def _kept(index: faiss.Index) -> Search:
    return lambda vectors, k: index.search(vectors, k)


def measured(problem: Problem, arms: Sequence[Arm], rounds: int) -> list[dict[str, report.Value]]:
    """Samples of both sides of every arm, in turns."""
    return [
        {"round": round_, "arm": f"{arm.name} on the {side}", "batch": batch, **_search(search, problem, batch)}
        for round_ in range(rounds)
        for arm in arms
        for batch in _BATCHES
        for side, search in (("host", arm.host), ("device", arm.device))[:: 1 if round_ % 2 else -1]
    ]


def _search(search: Search, problem: Problem, batch: int) -> dict[str, float]:
    queries = problem.test
    search(queries[:batch], AT)
    began, cpu = time.perf_counter(), time.process_time()
    rows = [search(queries[first : first + batch], AT)[1] for first in range(0, len(queries), batch)]
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    found = recall_of(np.concatenate(rows), problem.test_nearest)
    return {"wall_us": took / len(queries) * 1e6, "cpu_us": cpu / len(queries) * 1e6, "recall": found}


def summarised(samples: Sequence[Mapping[str, Any]], arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Medians of each side, by batch."""
    figures: dict[str, dict[str, Any]] = {}
    for arm in arms:
        for side in ("host", "device"):
            name = f"{arm.name} on the {side}"
            own = [sample for sample in samples if sample["arm"] == name]
            figures[name] = {
                f"{key}_{batch}": statistics.median(each[key] for each in own if each["batch"] == batch)
                for key in ("wall_us", "cpu_us", "recall")
                for batch in _BATCHES
            } | (
                {"planned_bytes": arm.planned_bytes, "taken_bytes": arm.taken_bytes}
                if side == "device"
                else {"planned_bytes": 0, "taken_bytes": 0}
            )
    return figures


def lost_recall(figures: Mapping[str, Mapping[str, Any]], arms: Sequence[Arm]) -> float:
    """By how much an arm that must find the same finds less on the device, at most."""
    return max(
        float(figures[f"{arm.name} on the host"]["recall_1"]) - float(figures[f"{arm.name} on the device"]["recall_1"])
        for arm in arms
        if arm.exact
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the report; exit code 3 without a GPU."""
    options = _parser().parse_args(arguments)
    device = gpu_device(options.device)
    if device is None:
        print(f"no GPU {options.device} for FAISS {faiss.__version__}: install faiss-gpu-cuvs where there is one")
        return NO_GPU
    try:
        problem = wink(_CACHE, rows=options.rows)
        arms = list(arms_of(problem, device, _free_bytes(options.device)))
    except (DataError, RuntimeError) as exc:
        print(exc, file=sys.stderr)
        return 1
    # Not before: the lists are trained on all cores.
    set_search_threads(1)
    samples = measured(problem, arms, options.rounds)
    figures = summarised(samples, arms)
    lost = lost_recall(figures, arms)
    goals = {
        "gpu_retrieval.lost_recall": report.Goal(lost, f"<= {_LOST}"),
        "gpu_retrieval.cagra_recall": report.Goal(float(figures["cagra on the device"]["recall_1"]), ">= 0.95"),
        "gpu_retrieval.taken_of_planned": report.Goal(max(arm.taken_bytes / arm.planned_bytes for arm in arms), "<= 1"),
    }
    result = report.Report(
        name="gpu_retrieval",
        machine={**report.machine(), "device": torch.cuda.get_device_name(options.device)},
        rounds=options.rounds,
        samples=samples,
        arms=figures,
        goals=goals,
    )
    for name, each in figures.items():
        print(
            f"{name}: {each['wall_us_1']:.0f} us alone, {each['wall_us_32']:.1f} of 32, recall {each['recall_1']:.4f}, "
            f"{each['taken_bytes'] / 1e6:.0f} MB taken of {each['planned_bytes'] / 1e6:.0f}"
        )
    print(*report.goal_lines(result), sep="\n")
    report.write(result, _draw(figures), directory=options.results)
    return report.exit_code(result, arms_agree=lost <= _LOST)


def _free_bytes(number: int) -> Callable[[], int]:
    """What the driver has left of a device, once it has been begun: that memory is no index's."""
    torch.zeros(1, device=f"cuda:{number}")
    return lambda: int(torch.cuda.mem_get_info(number)[0])


def _draw(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, batch in zip(figure.subplots(1, 2), _BATCHES, strict=True):
        axes.barh(list(figures), [float(each[f"wall_us_{batch}"]) for each in figures.values()])
        axes.set(title=f"µs a query, {batch} in a call", xscale="log")
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.gpu_retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", type=int, default=0)
    add("--rows", type=int, default=None, help="of the wink vectors; default: all")
    add("--rounds", type=int, default=5)
    add("--results", type=Path, default=report.RESULTS, help="where gpu_retrieval.json and gpu_retrieval.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
