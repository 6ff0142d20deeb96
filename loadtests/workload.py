"""A workload against any OpenAI-compatible server, ours or a bare one.

`python -m loadtests.workload --url http://127.0.0.1:8000` sends conversations about documents that are asked about as
often as they are popular (Zipf), each question only once unless `--repeats` says otherwise. They begin at random times
(Poisson, `--rate`), whether or not those before have ended; with `--concurrency` so many go on at once instead. Same
settings and `--seed`, same requests; `--write-trace` keeps them in a file, `--trace` sends what a file holds. It ends
after `--requests` and begins nothing after `--seconds`; what has not ended `--grace-s` later is counted as unanswered.

The report has the times to first tokens and between tokens, goodput under `--slo-ttft-ms` and `--slo-tpot-ms` (an
answer counts when it keeps both), the share of prompt tokens that the engine had cached, and with `--pids` the CPU time
of those processes and their children for each answer. Times count from when a request was to be sent.

Exit code 0: sent; 1: nothing was answered; 3: not sent.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from rich.console import Console

from loadtests import report, workload_plot
from loadtests.closed_loop import LoadError
from loadtests.process_tree import cpu_seconds_of
from loadtests.workload_figures import Run, Slo, build_report, lines
from loadtests.workload_load import Target, run
from loadtests.workload_trace import Session, Shape, generate, read_topics, read_trace, write_trace

_DEFAULT = Shape()


def main(arguments: Sequence[str] | None = None) -> int:
    """Send, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    slo = Slo(options.slo_ttft_ms, options.slo_tpot_ms)
    try:
        sessions = _sessions(options)
        target = Target(
            url=options.url.rstrip("/").removesuffix("/v1"),
            model=options.model or _model(options),
            key=options.key,
            timeout_s=options.timeout_s,
            extra=_extra(options.body),
        )
        done = measure(target, sessions, options)
    except LoadError as exc:
        console.print(f"not sent: {exc}", style="red", markup=False)
        return 3
    result = build_report(done, slo, arm=options.arm)
    for line in lines(dict(result.arms[options.arm])):  # type: ignore[arg-type]
        Console().print(line, highlight=False, markup=False)
    report.write(result, workload_plot.draw(done, slo), directory=options.results)
    return 0 if any(not each.came.problem for each in done.asked) else 1


def measure(target: Target, sessions: Sequence[Session], options: argparse.Namespace) -> Run:
    """Send all of it. Blocking."""
    cpu_s = _cpu_seconds(options.pids)
    last_s = max((session.at_s for session in sessions), default=0.0)
    limit_s = (options.seconds if options.concurrency else last_s) + options.grace_s
    began_s = time.perf_counter()
    asked, left = asyncio.run(run(target, sessions, concurrency=options.concurrency, limit_s=limit_s))
    seconds = time.perf_counter() - began_s
    return Run(asked, left, seconds, _cpu_seconds(options.pids) - cpu_s if options.pids else None)


def _sessions(options: argparse.Namespace) -> Sequence[Session]:
    if options.trace is not None:
        return read_trace(options.trace)
    shape = Shape(
        requests=options.requests,
        # A closed loop begins a session when another ends, and stops by the clock.
        seconds=options.seconds if options.concurrency is None else 1e9,
        rate=options.rate,
        zipf=options.zipf,
        turns=options.turns,
        think_s=options.think_s,
        question_words=options.question_words,
        answer_tokens=options.answer_tokens,
        spread=options.spread,
        repeats=options.repeats,
        seed=options.seed,
    )
    sessions = generate(shape, read_topics(options.documents))
    if options.write_trace is not None:
        write_trace(options.write_trace, sessions, shape)
    return sessions


def _extra(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as exc:
        raise LoadError(f"--body must be a JSON object, got {text!r}: {exc}") from exc
    if not isinstance(body, dict):
        raise LoadError(f"--body must be a JSON object, got {text!r}")
    return body


def _model(options: argparse.Namespace) -> str:
    """The server's own, where it has one alone."""
    url = options.url.rstrip("/").removesuffix("/v1") + "/v1/models"
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    try:
        listed = httpx.get(url, headers=headers, timeout=30.0)
        names = [card["id"] for card in listed.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
        raise LoadError(f"{url} did not list its models ({exc!r}): name one with --model") from exc
    if not names:
        raise LoadError(f"{url} lists no model: name one with --model")
    return str(names[0])


def _cpu_seconds(pids: Sequence[int]) -> float:
    try:
        return sum(cpu_seconds_of(psutil.Process(pid)) for pid in pids)
    except psutil.NoSuchProcess as exc:
        raise LoadError(f"there is no process {exc.pid}, of which --pids wants the CPU time") from exc


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.workload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="a running server, with or without /v1")
    add("--key", default=os.environ.get("RAG_STACK_API_KEY", ""))
    add("--model", default="", help="default: the first that the server lists")
    add("--body", default="{}", help="JSON that goes into every request, such as '{\"ignore_eos\": true}'")
    add("--requests", type=int, default=_DEFAULT.requests, help="no more than these")
    add("--seconds", type=float, default=_DEFAULT.seconds, help="nothing begins later")
    add("--grace-s", type=float, default=60.0, help="how long what has begun may take beyond that")
    add("--timeout-s", type=float, default=120.0, help="between two pieces of an answer")
    add("--rate", type=float, default=_DEFAULT.rate, help="conversations that begin a second")
    add("--concurrency", type=int, help="conversations at once, in the place of --rate")
    add("--zipf", type=float, default=_DEFAULT.zipf, help="exponent of the documents' popularity; 0: all alike")
    add("--turns", type=float, default=_DEFAULT.turns, help="mean questions of a conversation")
    add("--think-s", type=float, default=_DEFAULT.think_s, help="mean pause before the next question")
    add("--question-words", type=int, default=_DEFAULT.question_words, help="median, at least what a question takes")
    add("--answer-tokens", type=int, default=_DEFAULT.answer_tokens, help="median of max_tokens")
    add("--spread", type=float, default=_DEFAULT.spread, help="sigma of both; 0: all as long")
    add("--repeats", type=float, default=_DEFAULT.repeats, help="share of questions that were asked before")
    add("--seed", type=int, default=_DEFAULT.seed)
    add("--documents", type=Path, help="a folder of *.txt or JSON Lines; default: Python's language reference")
    add("--trace", type=Path, help="send what this file holds")
    add("--write-trace", type=Path, help="keep what is sent")
    add("--slo-ttft-ms", type=float, default=1000.0)
    add("--slo-tpot-ms", type=float, default=100.0)
    add("--pids", type=int, nargs="+", default=[], help="processes whose CPU time is taken, with all below them")
    add("--arm", default="server", help="what the server is called in the report")
    add("--results", type=Path, default=Path("var/loadtests/workload"), help="where workload.json and .png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
