"""A mapped index opened cold, shared and outgrown, against the disk's own rate, a copy in memory, and FAISS alone.

`python -m loadtests.cold_index` builds an index of seeded vectors once and drops it from the page cache (mincore says
whether that worked) before each visit of a process of its own. An arm's time is from closed files to 200 answers, with
all that is read in the background, and the best of several plain readers of the same files is what the disk can do.
Memory is that of four processes. Beyond memory, a memory cgroup allows a process half of the index on top of what it
takes itself; the figure is the 99th percentile of questions about hot lists, one question in ten being about others.

Exit code 0: goals met; 1: one is missed; 2: an answer was wrong or an arm not what it says; 3: not measured.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtests import cold_index_data, cold_index_plot, report
from loadtests.cold_index_build import NPROBE, ensure
from loadtests.cold_index_cgroup import NoMemoryGroupError, memory_group
from loadtests.cold_index_data import IndexData
from loadtests.cold_index_figures import (
    LIMITED,
    LIMITED_FAISS,
    MEMORY_COPY,
    MEMORY_OURS,
    READ,
    WARM,
    build_report,
    wrong,
)
from loadtests.cold_index_memory import VisitError, four_at_once, visit
from loadtests.cold_index_visit import READERS, Sample
from loadtests.page_cache import StillResidentError
from rag_stack.errors import RagStackError

# The share of the index that fits beside what the process takes itself.
MEMORY_SHARE = 0.5
# Page tables, the kernel's own, and what Python takes for a moment.
_SPARE_BYTES = 48 << 20

Tell = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    if options.quick:
        options.size_mb, options.rounds, options.questions = 60, 1, 1000
    samples: list[Sample] = []
    try:
        folder = ensure(options.indexes, size_mb=options.size_mb, tell=console.log)
        data = cold_index_data.load(folder)
        facts = _facts(data)
        for number in range(options.rounds):
            samples += measure(folder, data, number=number, questions=options.questions, tell=console.log)
            result = build_report(samples, facts=facts)
            report.write(result, cold_index_plot.draw(samples), directory=options.results)
    except (VisitError, StillResidentError, RagStackError, OSError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    found = wrong(samples)
    show(result)
    for line in found:
        console.print(line, style="red", markup=False)
    return report.exit_code(result, arms_agree=not found)


def measure(folder: Path, data: IndexData, *, number: int, questions: int, tell: Tell) -> list[Sample]:
    """One round of every arm; the cold ones begin with another each round. Raises VisitError."""
    samples: list[Sample] = []

    def keep(arm: str, sample: Sample) -> Sample:
        kept = {"round": number, "arm": arm, **sample}
        if "seconds" in kept:
            kept["gb_per_s"] = data.size_bytes / float(kept["seconds"] or 0) / 1e9
        samples.append(kept)
        tell(f"round {number + 1}: {arm} {_short(kept)}")
        return kept

    cold = [*(READ + how for how in READERS), "ours", "early", "copy"]
    turn = number % len(cold)
    for arm in (*cold[turn:], *cold[:turn]):
        keep(arm, visit(arm, folder))
    for arm, name in ((MEMORY_OURS, "ours"), (MEMORY_COPY, "copy")):
        keep(arm, four_at_once(name, folder, data))
    flags = ("--seed", str(number), "--count", str(questions), "--warm-up", str(questions // 2))
    warm = keep(WARM, visit("stream:ours", folder, *flags))
    own_bytes = int(warm["anon_bytes"] or 0)
    try:
        for arm, sample in _limited(folder, data, flags, own_bytes=own_bytes):
            keep(arm, sample)
    except NoMemoryGroupError as exc:
        tell(f"beyond memory is not measurable: {exc}")
    return samples


def _limited(folder: Path, data: IndexData, flags: Sequence[str], *, own_bytes: int) -> Iterator[tuple[str, Sample]]:
    limit = own_bytes + _SPARE_BYTES + int(MEMORY_SHARE * data.size_bytes)
    for arm, name in ((LIMITED, "stream:ours"), (LIMITED_FAISS, "stream:faiss")):
        with memory_group(limit_bytes=limit) as group:
            yield arm, {**visit(name, folder, *flags, group=group), "limit_bytes": group.limit_bytes}


def show(result: report.Report) -> None:
    """Print the table and the goals."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a file or a pipe has no width to keep to
    table = Table(title=f"rounds: {result.rounds}; medians")
    headings = {
        "seconds": "s",
        "cpu_s": "CPU s",
        "gb_per_s": "GB/s",
        "first_answer_ms": "first answer ms",
        "answered_beside": "answers while prefaulting",
        "memory_bytes": "memory GB",
        "hot_p50_ms": "hot p50 ms",
        "hot_p99_ms": "hot p99 ms",
        "cold_p99_ms": "other p99 ms",
    }
    table.add_column("arm", no_wrap=True)
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for arm, figures in result.arms.items():
        cells = []
        for key in headings:
            value = figures.get(key)
            scale = 1e-9 if key == "memory_bytes" else 1.0
            cells.append(f"{scale * value:.3g}" if isinstance(value, int | float) else "")
        table.add_row(arm, *cells)
    console.print(table)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


def _facts(data: IndexData) -> dict[str, report.Value]:
    metadata = data.manifest.metadata
    return {
        "index_bytes": data.size_bytes,
        "index_recipe": str(metadata["recipe"]),
        "index_nprobe": NPROBE,
        "index_vectors": int(metadata["passages"]),
        "index_recall_at_8": round(data.recall, 4),
        "hot_lists_bytes": data.hot_bytes,
    }


def _short(sample: Sample) -> str:
    shown = {"seconds": "s", "memory_bytes": "bytes", "hot_p99_ms": "ms hot p99", "right": "right"}
    return ", ".join(f"{sample[key]:.5g} {unit}" for key, unit in shown.items() if sample.get(key) is not None)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"expected 1 or more, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cold_index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=_positive, default=9)
    add("--size-mb", type=_positive, default=600, help="of the vectors")
    add("--questions", type=_positive, default=6000, help="of a stream, after half as many to warm up")
    add("--quick", action="store_true", help="one round with a small index, to see that it runs")
    add("--indexes", type=Path, default=Path("var/loadtests/cold-index"), help="where the index is kept; on a disk")
    add("--results", type=Path, default=report.RESULTS, help="where cold_index.json and cold_index.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
