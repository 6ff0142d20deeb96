"""Where a wake goes, before and after: zero replicas to the first token, stage by stage, against a bare vLLM's start.

`python -m loadtests.waterfall` deploys the release with no replica, asks one question, reads the stages of the start
that it caused from GET /v1/models/{id} and stops everything again; arms change places every round:

  bare      `python -m vllm.entrypoints.openai.api_server`, from the command to the first token
  spawn     a wake in which every process of the engine begins as a new Python
  fork      a wake in which a fork server that imports beside the replica gives them
  standby   a wake of which a parked process has all imports, and the weights in memory

Exit code 0: goals met; 1: one is missed; 2: the answers differ; 3: a server did not start.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from loadtests import report, waterfall_plot
from loadtests.arms import wait_until_ready
from loadtests.closed_loop import LoadError
from loadtests.process_tree import ProcessTree, inherited_environment
from loadtests.start_arms import ask_first, start_bare
from loadtests.waterfall_figures import ARMS, ArmName, Wake, answers_agree, build_report
from rag_stack.config import Release, load_release
from rag_stack.errors import RagStackError
from rag_stack.serving.environment import free_port, offline_environment

_START_TIMEOUT_S = 900.0
_REPORT_TIMEOUT_S = 60.0
_POLL_S = 0.2
_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
_FLAGS: Mapping[ArmName, Sequence[str]] = {"spawn": ("--fork", "false"), "fork": (), "standby": ("--standby",)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    wakes: list[Wake] = []
    try:
        release = load_release(options.release)
        for number in range(options.rounds):
            for arm in options.arms if number % 2 == 0 else options.arms[::-1]:
                wakes.append(measure(arm, options, release, number=number))
                console.log(f"round {number + 1}: {arm} {wakes[-1].seconds:.1f} s")
                report.write(build_report(wakes), waterfall_plot.draw(wakes), directory=options.results)
    except (LoadError, RagStackError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result = build_report(wakes)
    waterfall_plot.show(wakes)
    for line in report.goal_lines(result):
        Console().print(line, highlight=False)
    return report.exit_code(result, arms_agree=answers_agree(wakes))


def measure(arm: ArmName, options: argparse.Namespace, release: Release, *, number: int) -> Wake:
    """One start. Raises LoadError."""
    if arm == "bare":
        first = start_bare(options.release, release, logs=options.logs)
        return Wake(number, arm, first.seconds, first.answer_sha256, first.cpu_s)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Short, since the path of a socket in it must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="wake-", ignore_cleanup_errors=True) as folder:
        environment = {**inherited_environment(), **offline_environment(), "RAY_TMPDIR": folder}
        environment |= {name: str(free_port()) for name in _PORTS}
        command = [sys.executable, "-m", "loadtests.asleep", "--release", str(options.release), "--port", str(port)]
        tree = ProcessTree([*command, *_FLAGS[arm]], environment=environment, log=options.logs / f"waterfall-{arm}.log")
        try:
            standby = _wait_until_asleep(tree)
            wait_until_ready(f"{url}/health", tree, timeout_s=_START_TIMEOUT_S)
            cpu_s = tree.cpu_seconds()
            asked_s = time.time()
            first = ask_first(url, release.model.name)
            cpu_s = tree.cpu_seconds() - cpu_s
            load = _load(url, release.model.name)
            return Wake(
                number, arm, first.seconds, first.answer_sha256, cpu_s, load=load, asked_s=asked_s, standby=standby
            )
        finally:
            tree.stop()


def _wait_until_asleep(tree: ProcessTree) -> dict[str, Any]:
    """What it says of its standby. Raises LoadError."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        for line in tree.tail(lines=50).splitlines():
            if line.startswith('{"asleep"'):
                return dict(json.loads(line)["standby"])
        if (status := tree.exit_status()) is not None:
            raise LoadError(f"it ended with status {status}:\n{tree.tail()}")
        time.sleep(_POLL_S)
    raise LoadError(f"nothing was deployed after {_START_TIMEOUT_S:.0f} s:\n{tree.tail()}")


def _load(url: str, model: str) -> dict[str, Any]:
    """The replica's report, which it sends to /v1/models a moment after. Raises LoadError."""
    deadline = time.monotonic() + _REPORT_TIMEOUT_S
    with httpx.Client(timeout=10.0) as client:
        while time.monotonic() < deadline:
            answer = client.get(f"{url}/v1/models/{model}")
            load = answer.json().get("load") if answer.status_code == 200 else None
            if load and "stages" in load:
                return dict(load)
            time.sleep(_POLL_S)
    raise LoadError(f"{url}/v1/models/{model} had no report after {_REPORT_TIMEOUT_S:.0f} s: {answer.text[:500]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.waterfall", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    add("--release", type=Path, default=Path("releases/demo.yaml"))
    add("--rounds", type=int, choices=range(1, 101), metavar="N", default=5, help="a start of each arm, each")
    add("--arms", nargs="+", choices=ARMS, default=ARMS, help="all by default")
    add("--logs", type=Path, default=Path("var/loadtests/waterfall"), help="what the last servers printed")
    add("--results", type=Path, default=report.RESULTS, help="where waterfall.json and waterfall.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
