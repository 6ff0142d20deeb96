"""Weights from an S3 server to this node's disk: our verified fetch against clients that verify nothing.

`python -m loadtests.fetch` starts an S3 server, publishes an artifact of random bytes, and has each client bring it to
an empty directory, in a process of its own, in turns; the first one changes every round. Imports and a first request
are not timed; what is dirty is written to the disk between visits. Ours ends when the artifact stands verified in the
node cache. What each client brought is compared with what was published. A second table has the digests that were
considered, on chunks in memory and one core, and their share of our fetch's CPU time.

The server runs on the same machine: with 2 cores, client and server share them, so a client's CPU time counts here
more than on a node of its own, and no rate here is a network's.

Exit code 0: goals met; 1: one is missed; 2: a client brought other bytes; 3: not measured.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from blake3 import blake3
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.fetch_clients import CLIENTS, OURS, RAY
from loadtests.process_tree import inherited_environment
from loadtests.s3_server import S3Server, serve_s3
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import CHUNK_BYTES, chunk_digests
from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import RagStackError

_ROOT: Final = "s3://bucket/root"
_FILES: Final = 4
_VISIT_TIMEOUT_S: Final = 300
_DIGEST_CHUNKS: Final = 24
_DIGESTS: Mapping[str, Callable[[bytes], Any]] = {
    "blake3": lambda data: blake3(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "blake2b": lambda data: hashlib.blake2b(data).digest(),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
}


# A client's answer, and the server's CPU seconds meanwhile.
Run: TypeAlias = Callable[[str], tuple[dict[str, Any], float]]


@dataclass(frozen=True, slots=True)
class Visit:
    """One client, once."""

    round: int
    arm: str
    seconds: float
    cpu_s: float
    server_cpu_s: float
    memory_bytes: int
    size_bytes: int
    right: bool

    @property
    def gb_per_s(self) -> float:
        return self.size_bytes / self.seconds / 1e9


class FetchError(RagStackError):
    """A client failed, so that there is nothing to compare."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.size_mb, options.rounds = 64, 1
    console = Console(stderr=True)
    try:
        digests = digest_rates()
        visits = measure(size_mb=options.size_mb, rounds=options.rounds, tell=console.log)
    except (RagStackError, OSError, subprocess.SubprocessError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result = build_report(visits, digests)
    show(result)
    report.write(result, draw(visits), directory=options.results)
    return report.exit_code(result, arms_agree=all(visit.right for visit in visits))


def measure(*, size_mb: int, rounds: int, tell: Callable[[str], None]) -> list[Visit]:
    """All visits of all clients that are installed."""
    visits: list[Visit] = []
    with _prepared(size_mb) as (server, url, expected, directory):
        size_bytes = sum(size for size, _ in expected.values())
        run = partial(_run, server=server, url=url, directory=directory, size_bytes=size_bytes)
        # Also warms the server's files.
        arms = [arm for arm in CLIENTS if _is_there(arm, run, tell)]
        for number in range(rounds):
            turn = number % len(arms)
            for arm in (*arms[turn:], *arms[:turn]):
                answer, server_cpu_s = run(arm)
                visits.append(
                    Visit(
                        round=number,
                        arm=arm,
                        seconds=answer["seconds"],
                        cpu_s=answer["cpu_s"],
                        server_cpu_s=server_cpu_s,
                        memory_bytes=answer["memory_bytes"],
                        size_bytes=size_bytes,
                        right=all(_same(Path(answer["path"]) / name, entry) for name, entry in expected.items()),
                    )
                )
                tell(f"round {number + 1}: {arm:22} {visits[-1].seconds:6.2f} s, {visits[-1].gb_per_s:.3f} GB/s")
    return visits


def digest_rates() -> dict[str, float]:
    """GB/s of each digest over chunks in memory, one thread; the median of passes that take turns."""
    data = os.urandom(CHUNK_BYTES)
    rates: dict[str, list[float]] = {name: [] for name in _DIGESTS}
    for _ in range(_DIGEST_CHUNKS):
        for name, of in _DIGESTS.items():
            started = time.thread_time()
            of(data)
            rates[name].append(CHUNK_BYTES / (time.thread_time() - started) / 1e9)
    return {name: statistics.median(values) for name, values in rates.items()}


def build_report(visits: Sequence[Visit], digests: Mapping[str, float]) -> report.Report:
    """Medians per arm; goals on the median of the rounds' own ratios."""
    arms: dict[str, Mapping[str, report.Value | Sequence[float]]] = {}
    for arm in dict.fromkeys(visit.arm for visit in visits):
        own = [visit for visit in visits if visit.arm == arm]
        arms[arm] = {
            "gb_per_s": statistics.median(visit.gb_per_s for visit in own),
            "seconds": statistics.median(visit.seconds for visit in own),
            "cpu_s": statistics.median(visit.cpu_s for visit in own),
            "server_cpu_s": statistics.median(visit.server_cpu_s for visit in own),
            "memory_mb": statistics.median(visit.memory_bytes for visit in own) / 1e6,
            "interval_gb_per_s": report.bootstrap_interval([visit.gb_per_s for visit in own]),
        }
    for name, rate in digests.items():
        hashing_s = visits[0].size_bytes / rate / 1e9
        arms[f"digest {name}"] = {
            "gb_per_s": rate,
            "cpu_s": hashing_s,
            "share_of_cpu": hashing_s / float(arms[OURS]["cpu_s"]) if name == "blake3" else None,  # type: ignore[arg-type]
        }
    unverified = [arm for arm in arms if arm in CLIENTS and arm != OURS]
    best = max(unverified, key=lambda arm: float(arms[arm]["gb_per_s"]))  # type: ignore[arg-type]
    goals = {
        "fetch.vs_best_unverified": report.Goal(_ratio(visits, best), ">= 0.85"),
        "fetch.vs_s3fs": report.Goal(_ratio(visits, "s3fs"), ">= 1.5"),
        "fetch.vs_ray_serve_llm": report.Goal(_ratio(visits, RAY), ">= 1"),
    }
    return report.Report(
        name="fetch",
        machine={**report.machine(), "best_unverified": best},
        rounds=max(visit.round for visit in visits) + 1,
        samples=[
            {
                "round": visit.round,
                "arm": visit.arm,
                "seconds": visit.seconds,
                "cpu_s": visit.cpu_s,
                "server_cpu_s": visit.server_cpu_s,
                "memory_bytes": visit.memory_bytes,
                "size_bytes": visit.size_bytes,
                "right": visit.right,
            }
            for visit in visits
        ],
        arms=arms,
        goals=goals,
    )


def show(result: report.Report) -> None:
    """Print both tables and the goals."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a file or a pipe has no width to keep to
    table = Table(title=f"rounds: {result.rounds}; medians")
    digests = Table(title="digests, one core")
    columns = {
        "gb_per_s": "GB/s",
        "seconds": "wall s",
        "cpu_s": "CPU s",
        "server_cpu_s": "server's CPU s",
        "memory_mb": "memory MB",
    }
    table.add_column("client", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for heading in ("digest", "GB/s", "CPU s", "of our fetch's CPU"):
        digests.add_column(heading, justify="left" if heading == "digest" else "right")
    for arm, figures in result.arms.items():
        if arm in CLIENTS:
            table.add_row(arm, *(f"{float(figures[key]):.3g}" for key in columns))  # type: ignore[arg-type]
        else:
            share = figures["share_of_cpu"]
            last = f"{share:.1%}" if isinstance(share, float) else ""
            digests.add_row(arm.removeprefix("digest "), f"{figures['gb_per_s']:.3g}", f"{figures['cpu_s']:.3g}", last)
    console.print(table)
    console.print(digests)
    console.print(f"the best that verifies nothing: {result.machine['best_unverified']}", highlight=False)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


def draw(visits: Sequence[Visit]) -> Figure:
    """Bars are medians, points the rounds."""
    arms = sorted(
        dict.fromkeys(visit.arm for visit in visits),
        key=lambda arm: statistics.median(visit.gb_per_s for visit in visits if visit.arm == arm),
    )
    figure = Figure(figsize=(8.5, 0.8 + 0.45 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        rates = [visit.gb_per_s for visit in visits if visit.arm == arm]
        axes.barh(place, statistics.median(rates), height=0.7, color="#2f5d80" if arm == OURS else "#b9b9b9")
        axes.scatter(rates, [place] * len(rates), s=9, color="#222222", zorder=3)
        axes.annotate(
            f"{statistics.median(rates):.2f}", (max(rates), place), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(arms)), [f"{arm}, verified" if arm == OURS else arm for arm in arms])
    axes.set_xlabel("GB/s from an S3 server on the same machine to its disk")
    axes.set_title(f"{visits[0].size_bytes / 1e6:.0f} MB in {_FILES} files", loc="left")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _ratio(visits: Sequence[Visit], other: str) -> float | None:
    """The median over rounds of our rate to another's; None when that one was not there."""
    rates = {(visit.round, visit.arm): visit.gb_per_s for visit in visits}
    ratios = [
        rate / rates[number, other] for (number, arm), rate in rates.items() if arm == OURS and (number, other) in rates
    ]
    return statistics.median(ratios) if ratios else None


def _is_there(arm: str, run: Run, tell: Callable[[str], None]) -> bool:
    answer, _ = run(arm)
    if "missing" in answer:
        tell(f"{arm}: left out, {answer['missing']}")
    return "missing" not in answer


def _run(arm: str, *, server: S3Server, url: str, directory: Path, size_bytes: int) -> tuple[dict[str, Any], float]:
    """The client's answer, and the server's CPU seconds meanwhile."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    os.sync()
    before_s = _cpu_seconds(server.process_id)
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.fetch_clients", arm, url, str(directory), str(size_bytes)],
        env={**inherited_environment(), **server.environment},
        capture_output=True,
        text=True,
        timeout=_VISIT_TIMEOUT_S,
        check=False,
    )
    if done.returncode not in (0, 4):
        raise FetchError(f"{arm} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer, _cpu_seconds(server.process_id) - before_s


def _cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _same(path: Path, expected: tuple[int, tuple[str, ...]]) -> bool:
    return path.is_file() and chunk_digests(path) == expected


@contextmanager
def _prepared(size_mb: int) -> Iterator[tuple[S3Server, str, Mapping[str, tuple[int, tuple[str, ...]]], Path]]:
    """A server with the artifact, the artifact's URL, its files' sizes and digests, and a place for downloads."""
    with tempfile.TemporaryDirectory(prefix="rag-stack-fetch-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        source = directory / "source"
        source.mkdir()
        (directory / "s3" / "bucket").mkdir(parents=True)
        generator = np.random.default_rng(0)
        for number in range(_FILES):
            (source / f"w-{number}.bin").write_bytes(generator.bytes(size_mb * 10**6 // _FILES))
        with serve_s3(directory / "s3") as server:
            # Put into the served directory: what the server does with uploads is not asked about here.
            root = (directory / "s3" / _ROOT.removeprefix("s3://")).as_uri()
            manifest = Catalog(open_store(root)).publish(source, kind="models", name="random", metadata={})
            with ThreadPoolExecutor() as pool:
                paths = sorted(source.iterdir())
                found = {path.name: each for path, each in zip(paths, pool.map(chunk_digests, paths), strict=True)}
            yield server, f"{_ROOT}/{manifest.ref}", found, directory / "brought"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"expected 1 or more, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=_positive, default=7)
    add("--size-mb", type=_positive, default=1000, help="of the artifact")
    add("--quick", action="store_true", help="one round with a small artifact, to see that it runs")
    add("--results", type=Path, default=report.RESULTS, help="where fetch.json and fetch.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
