"""Scale to zero, seen from outside: a crowd asks a sleeping engine, and a wake is timed beside a bare vLLM's start.

`python -m loadtests.wake` deploys a release with no replica of its engine. 50 official clients ask at once, 40 of them
for a stream, each with a read timeout of 15 s and no second try, while searches go on; the replicas that start are
counted. Beside that, each round times from zero to a first token: a bare vLLM of the same settings, a wake, and a wake
with a standby. Arms change places every round.

Exit code 0: goals met; 1: one is missed; 2: the answers differ; 3: a server did not start.
"""

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from rich.console import Console

from loadtests import report, wake_plot
from loadtests.arms import wait_until_ready
from loadtests.closed_loop import LoadError
from loadtests.process_tree import ProcessTree, inherited_environment
from loadtests.start_arms import ask_first, start_bare
from loadtests.wake_clients import ask_once, burst
from loadtests.wake_figures import ARMS, ArmName, Crowd, FirstAnswer, arms_agree, build_report
from rag_stack.config import Release, load_release
from rag_stack.errors import RagStackError
from rag_stack.serving.environment import free_port, offline_environment

_START_TIMEOUT_S = 900.0
_CROWD_LIMIT_S = 600.0
_POLL_S = 0.2
_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
_REPLICA = "ray::ServeReplica:engine:"
_ROUTER = f"{_REPLICA}LLMRouter"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    starts: list[FirstAnswer] = []
    crowds: list[Crowd] = []
    try:
        release = load_release(options.release)
        for number in range(1 if options.quick else options.rounds):
            crowds.append(crowd(options, release, number=number))
            console.log(f"round {number + 1}: {crowds[-1].sample()}", markup=False)
            for arm in options.arms if number % 2 == 0 else options.arms[::-1]:
                starts.append(first_answer(arm, options, release, number=number))
                console.log(f"round {number + 1}: {arm} {starts[-1].seconds:.1f} s")
            report.write(build_report(starts, crowds), wake_plot.draw(starts, crowds), directory=options.results)
    except (LoadError, RagStackError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result, agree = build_report(starts, crowds), arms_agree(starts, crowds)
    for line in report.goal_lines(result):
        Console().print(line, highlight=False)
    if not agree:
        console.print("the answers differ, so no figure counts", style="red")
    return report.exit_code(result, arms_agree=agree)


def first_answer(arm: ArmName, options: argparse.Namespace, release: Release, *, number: int) -> FirstAnswer:
    """From nothing, or from zero replicas, to a first token. Raises LoadError."""
    if arm == "bare":
        first = start_bare(options.release, release, logs=options.logs)
    else:
        with sleeping(options, standby=arm == "standby") as (url, _):
            first = ask_first(url, release.model.name)
    return FirstAnswer(number, arm, first.seconds, first.answer_sha256)


def crowd(options: argparse.Namespace, release: Release, *, number: int) -> Crowd:
    """All clients at once, and one more when the engine is warm. Raises LoadError."""
    if release.default_store is None:
        raise LoadError("the release has no default store, so that there is nothing to search")
    with sleeping(options, standby=False) as (url, tree), counted(tree) as replicas:
        seen = burst(
            url,
            model=release.model.name,
            store=release.default_store,
            streams=options.streams,
            wholes=options.wholes,
            limit_s=_CROWD_LIMIT_S,
        )
        warm = ask_once(url, model=release.model.name)
    return Crowd(number, seen, len(replicas.pids), warm.answer_sha256)


@contextlib.contextmanager
def sleeping(options: argparse.Namespace, *, standby: bool) -> Iterator[tuple[str, ProcessTree]]:
    """The release, deployed without a replica of its engine; all its processes are gone afterwards."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Short, since the path of a socket in it must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="wake-", ignore_cleanup_errors=True) as folder:
        environment = {**inherited_environment(), **offline_environment(), "RAY_TMPDIR": folder}
        environment |= {name: str(free_port()) for name in _PORTS}
        command = [sys.executable, "-m", "loadtests.asleep", "--release", str(options.release), "--port", str(port)]
        log = options.logs / f"wake-{'standby' if standby else 'stack'}.log"
        tree = ProcessTree([*command, *(["--standby"] if standby else [])], environment=environment, log=log)
        try:
            _wait_until_asleep(tree)
            wait_until_ready(f"{url}/ready", tree, timeout_s=_START_TIMEOUT_S)
            yield url, tree
        finally:
            tree.stop()


@dataclass
class Replicas:
    """The processes that were replicas of the engine at any time."""

    pids: set[int] = field(default_factory=set)


@contextlib.contextmanager
def counted(tree: ProcessTree) -> Iterator[Replicas]:
    """Look for replicas of the engine for as long as the block lasts."""
    found, over = Replicas(), threading.Event()

    def look() -> None:
        while not over.wait(_POLL_S):
            found.pids |= _replicas(tree)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()


def _replicas(tree: ProcessTree) -> set[int]:
    pids = set()
    for process in tree.members():
        with contextlib.suppress(psutil.Error):  # it has ended
            title = " ".join(process.cmdline())
            if title.startswith(_REPLICA) and not title.startswith(_ROUTER):
                pids.add(process.pid)
    return pids


def _wait_until_asleep(tree: ProcessTree) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(line.startswith('{"asleep"') for line in tree.tail(lines=50).splitlines()):
            return
        if (status := tree.exit_status()) is not None:
            raise LoadError(f"it ended with status {status}:\n{tree.tail()}")
        time.sleep(_POLL_S)
    raise LoadError(f"nothing was deployed after {_START_TIMEOUT_S:.0f} s:\n{tree.tail()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.wake", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    add("--release", type=Path, default=Path("releases/demo.yaml"))
    add("--rounds", type=int, choices=range(1, 101), metavar="N", default=5, help="a crowd and a start of each arm")
    add("--quick", action="store_true", help="one round")
    add("--arms", nargs="+", choices=ARMS, default=ARMS, help="all by default; what is left out misses its goal")
    add("--streams", type=int, default=40, help="clients of the crowd that want a stream")
    add("--wholes", type=int, default=10, help="clients of the crowd that want a whole answer")
    add("--logs", type=Path, default=Path("var/loadtests/wake"), help="what the last servers printed")
    add("--results", type=Path, default=report.RESULTS, help="where wake.json and wake.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
