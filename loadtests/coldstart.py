"""Where a cold start goes: `rag-stack serve` from an empty and from a filled node cache, stage by stage.

`python -m loadtests.coldstart` starts the release, asks one question as soon as the server is ready, reads the stages
from GET /v1/models/{id} and stops it again; the arms change places every round. Two wholes are looked at: the
replica's, from the start of its process to its first token, and the user's, from the start of the command to the first
token that a client gets. What no stage names counts as unnamed. The page cache is left as it is.

Exit code 0: goals met; 1: one is missed; 2: an arm was not what it says, or answers differ; 3: a server did not start.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from loadtests import coldstart_plot, report
from loadtests.arms import wait_until_ready
from loadtests.closed_loop import LoadError, ask_all, request_body
from loadtests.coldstart_figures import ARMS, ArmName, Start, arms_agree, artifact_share, build_report, middle
from loadtests.process_tree import ProcessTree, inherited_environment
from rag_stack.config import load_release
from rag_stack.errors import RagStackError
from rag_stack.serving.environment import free_port, offline_environment
from rag_stack.timeline import Breakdown

START_TIMEOUT_S = 900.0
_REPORT_TIMEOUT_S = 60.0
_QUESTION = [{"role": "user", "content": "What is a context manager?"}]
_TOKENS = 4
_POLL_S = 0.2
_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    rounds, arms = (1, ARMS[:1]) if options.quick else (options.rounds, ARMS)
    starts: list[Start] = []
    try:
        model = load_release(options.release).model.name
        for number in range(rounds):
            for arm in arms if number % 2 == 0 else arms[::-1]:
                starts.append(measure(arm, options, number=number, model=model))
                whole = starts[-1].whole()
                console.log(f"round {number + 1}: {arm} {whole.seconds:.1f} s, unnamed {whole.unnamed_share:.1%}")
            report.write(build_report(starts), coldstart_plot.draw(starts), directory=options.results)
    except (LoadError, RagStackError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result, agree = build_report(starts), arms_agree(starts)
    show(starts, result, agree=agree)
    return report.exit_code(result, arms_agree=agree)


def measure(arm: ArmName, options: argparse.Namespace, *, number: int, model: str) -> Start:
    """One start, from the command to the first answer, and its report. Raises LoadError."""
    if arm == "empty":
        shutil.rmtree(options.cache, ignore_errors=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Short, since the path of a socket in it must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="cold-", ignore_cleanup_errors=True) as folder:
        environment = {**inherited_environment(), **offline_environment(), "RAY_TMPDIR": folder}
        environment |= {name: str(free_port()) for name in _PORTS}
        tree = ProcessTree(_command(options, port), environment=environment, log=options.log)
        try:
            wait_until_ready(f"{url}/ready", tree, timeout_s=START_TIMEOUT_S)
            asked_s = time.time()
            (answer,) = ask_all(
                url, [request_body(model, _QUESTION, max_tokens=_TOKENS, salt="coldstart")], concurrency=1
            )
            load = _load(url, model)
            return Start(
                round=number,
                arm=arm,
                load=load,
                asked_s=asked_s,
                answered_s=asked_s + answer.ttft_ms / 1000,
                answer_sha256=answer.output_sha256,
                cpu_s=tree.cpu_seconds(),
            )
        finally:
            tree.stop()


def show(starts: Sequence[Start], result: report.Report, *, agree: bool) -> None:
    """Print each arm's median waterfall, and the goals."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to keep to
    for arm in ARMS:
        if (start := middle(starts, arm)) is not None:
            replica, whole = start.replica(), start.whole()
            console.print(_waterfall(f"{arm} node cache, median start", whole))
            console.print(_shares("replica, process start to first token", replica), highlight=False)
            console.print(_shares("command start to a client's first token", whole), highlight=False)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)
    if not agree:
        console.print("an arm was not what it says, or the answers differ, so no figure counts", style="red")


def _shares(name: str, whole: Breakdown) -> str:
    artifacts = artifact_share(whole)
    return f"{name}: {whole.seconds:.2f} s, unnamed {whole.unnamed_share:.2%}, artifacts {artifacts:.2%}"


def _waterfall(title: str, whole: Breakdown) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("process", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seconds", "waited", "MB", "GB/s"):
        table.add_column(heading, justify="right")
    table.add_column("", width=32)
    for stage in whole.stages:
        span = stage.span
        moved = (f"{span.size_bytes / 1e6:.1f}", f"{span.gb_per_s:.2f}") if span.size_bytes else ("", "")
        bar = Bar(whole.seconds, span.start_s - whole.start_s, span.end_s - whole.start_s, width=32)
        cells = (span.process, span.name, f"{span.seconds:.2f}", f"{stage.critical_s:.2f}", *moved, bar)
        table.add_row(*cells, style="dim" if span.beside else "")
    table.add_section()
    table.add_row("", f"unnamed ({whole.unnamed_share:.1%})", "", f"{whole.unnamed_s:.2f}")
    table.add_row("", "whole", "", f"{whole.seconds:.2f}", style="bold")
    return table


def _load(url: str, model: str) -> dict[str, Any]:
    """The start's report, which the replica and the command send to /v1/models a moment after. Raises LoadError."""
    deadline = time.monotonic() + _REPORT_TIMEOUT_S
    with httpx.Client(timeout=10.0) as client:
        while time.monotonic() < deadline:
            answer = client.get(f"{url}/v1/models/{model}")
            load = answer.json().get("load") if answer.status_code == 200 else None
            if load and "stages" in load and "command" in load:
                return dict(load)
            time.sleep(_POLL_S)
    raise LoadError(f"{url}/v1/models/{model} had no report after {_REPORT_TIMEOUT_S:.0f} s: {answer.text[:500]}")


def _command(options: argparse.Namespace, port: int) -> list[str]:
    # The interpreter's own directory, so that both come from one environment.
    program = str(Path(sys.executable).parent / "rag-stack")
    cache = str(options.cache.absolute())
    return [program, "serve", str(options.release), "--host", "127.0.0.1", "--port", str(port), "--cache", cache]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.coldstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    add("--release", type=Path, default=Path("releases/demo.yaml"))
    add(
        "--rounds",
        type=int,
        choices=range(1, 101),
        metavar="N",
        default=3,
        help="two starts each, over a minute a start",
    )
    add("--quick", action="store_true", help="one start, from an empty cache; misses the other arm's goal")
    add("--cache", type=Path, default=Path("var/loadtests/coldstart-cache"), help="is emptied before every other start")
    add("--log", type=Path, default=Path("var/loadtests/coldstart.log"), help="what the last server printed")
    add("--results", type=Path, default=report.RESULTS, help="where coldstart.json and coldstart.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
