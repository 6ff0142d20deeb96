"""One artifact to many nodes and actors at once: what leaves the object store, and how long until all are ready.

`python -m loadtests.fanin` starts an S3 server and a Ray cluster of 1, then 2, then 4 raylets on this machine, each
with a node cache of its own, and has 1 or 4 idle actors on every node fetch the same artifact into empty caches at the
same time. The clock runs from the call until the last actor has it. Bytes are counted at the server, by the kernel:
all that it writes meanwhile, so manifests, listings and headers too. An arm without the peers tier shows what that
changes. Arms of one cluster take turns, and the first changes every round. The server reads from the page cache, and
nodes share the machine's cores, so the times say little of a cluster; the bytes and ratios are what counts.

Exit code 0: goals met; 1: one is missed; 2: a node did not get what was published; 3: not measured.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ray.exceptions import RayError
from rich.console import Console
from rich.table import Table

from loadtests import fanin_plot, report
from loadtests.backed_memory import back
from loadtests.fanin_figures import ACTORS, NODES, Arm, Round, arms, build_report
from loadtests.fanin_nodes import Nodes, check, cpu_seconds, fetch_at_once, started
from loadtests.s3_server import S3Server, serve_s3
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import RagStackError

_ROOT = "s3://bucket/root"
_FILES = 4

Tell = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.size_mb, options.rounds = 128, 1
    console = Console(stderr=True)
    try:
        rounds = measure(size_mb=options.size_mb, count=options.rounds, tell=console.log)
    except (RagStackError, RayError, OSError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result = build_report(rounds, facts={"artifact_bytes": rounds[0].artifact_bytes})
    show(result)
    report.write(result, fanin_plot.draw(rounds), directory=options.results)
    return report.exit_code(result, arms_agree=all(each.right for each in rounds))


def measure(*, size_mb: int, count: int, tell: Tell) -> list[Round]:
    """All rounds of all arms, on clusters of 1, 2 and 4 nodes."""
    rounds: list[Round] = []
    with _prepared(size_mb) as (server, nodes, manifest, little):
        for nodes_count in NODES:
            nodes.grow(nodes_count, actors=max(ACTORS))
            nodes.warm(little)
            own = arms(nodes_count)
            for number in range(count):
                turn = number % len(own)
                for arm in (*own[turn:], *own[:turn]):
                    rounds.append(_round(arm, number, server=server, nodes=nodes, manifest=manifest))
                    tell(_line(rounds[-1]))
    return rounds


def _round(arm: Arm, number: int, *, server: S3Server, nodes: Nodes, manifest: Manifest) -> Round:
    nodes.clear()
    # The caches, and as much for what is on its way.
    back(2 * arm.nodes * manifest.size_bytes, nodes.directory)
    sent, cpu_s, began = server.bytes_sent(), cpu_seconds(), time.perf_counter()
    answers = fetch_at_once(nodes, manifest, nodes_count=arm.nodes, actors=arm.actors, with_peers=arm.with_peers)
    # The answers themselves come only when the disk is at rest.
    seconds = max(answer["ready_at"] for answer in answers) - began
    return Round(
        number=number,
        arm=arm,
        seconds=seconds,
        cpu_s=cpu_seconds() - cpu_s,
        sent_bytes=server.bytes_sent() - sent,
        artifact_bytes=manifest.size_bytes,
        answers=answers,
        verified=check(nodes, manifest, nodes_count=arm.nodes),
    )


def show(result: report.Report) -> None:
    """Print the table and the goals."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a file or a pipe has no width to keep to
    table = Table(title=f"rounds: {result.rounds}; medians, and the worst ratio; nodes x actors on each")
    headings = {
        "seconds": ("wall s", 1.0),
        "cpu_s": ("CPU s", 1.0),
        "origin_bytes": ("origin sent MB", 1e-6),
        "worst_origin_ratio": ("origin / artifact", 1.0),
        "peer_bytes": ("from peers MB", 1e-6),
        "gb_per_s": ("GB/s, all nodes", 1.0),
    }
    table.add_column("arm", no_wrap=True)
    for heading, _ in headings.values():
        table.add_column(heading, justify="right")
    for arm, figures in result.arms.items():
        table.add_row(arm, *(f"{float(figures[key]) * scale:.5g}" for key, (_, scale) in headings.items()))  # type: ignore[arg-type]
    console.print(table)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


@contextmanager
def _prepared(size_mb: int) -> Iterator[tuple[S3Server, Nodes, Manifest, Manifest]]:
    """A server with the artifact and a little one for warming up, and a cluster of one node."""
    with tempfile.TemporaryDirectory(prefix="rag-stack-fanin-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        (directory / "s3" / "bucket").mkdir(parents=True)
        with (
            serve_s3(directory / "s3") as server,
            started(directory, root=_ROOT, environment=server.environment) as nodes,
        ):
            # Put into the served directory: what the server does with uploads is not asked about here.
            catalog = Catalog(open_store((directory / "s3" / _ROOT.removeprefix("s3://")).as_uri()))
            manifest, little = (
                catalog.publish(_written(directory / kind, size), kind="models", name=kind, metadata={})
                for kind, size in (("random", size_mb * 10**6), ("little", 10**6))
            )
            yield server, nodes, manifest, little


def _written(directory: Path, size_bytes: int) -> Path:
    """Files of seeded random bytes, which nothing on the way can compress or share."""
    directory.mkdir()
    generator = np.random.default_rng(0)
    for number in range(_FILES):
        (directory / f"w-{number}.bin").write_bytes(generator.bytes(size_bytes // _FILES))
    return directory


def _line(each: Round) -> str:
    sample = each.sample()
    return (
        f"round {each.number + 1}: {each.arm.name:18} {each.seconds:6.2f} s, {each.cpu_s:5.1f} CPU s, "
        f"origin {sample['origin_ratio']:.4f}"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"expected 1 or more, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.fanin", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=_positive, default=7)
    add("--size-mb", type=_positive, default=768, help="of the artifact")
    add("--quick", action="store_true", help="one round with a small artifact, to see that it runs")
    add("--results", type=Path, default=report.RESULTS, help="where fanin.json and fanin.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
