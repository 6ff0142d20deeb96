"""Whether `rag-stack plan kv` foretells what vLLM's prefix cache then finds.

`python -m loadtests.plan_kv` asks a real vLLM what sessions ask about Zipf-drawn documents, with a cache that is too
small for them. Our recorder writes the trace of the first run; from it alone the hit rates and first tokens of all
capacities are predicted, printed, and only then read from the servers' metrics. The first run's own is the prediction
of what happened; those of the other capacities were made before their servers started.

Exit code 0: goal met; 1: missed; 2: the runs were not asked the same; 3: a server could not be measured.
"""

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.arms import ArmStarter
from loadtests.closed_loop import Answer, LoadError, Messages, ask_all, request_body
from loadtests.plain_app import model_directory
from loadtests.plan_kv_figures import Run, build_report, draw
from loadtests.plan_kv_server import recorded
from loadtests.plan_kv_workload import documents, requests
from rag_stack.api.kv_trace import KvTraceRecorder, PromptEncoder
from rag_stack.config import Release, load_release
from rag_stack.errors import RagStackError
from rag_stack.generation.tokenizer import GeneratorTokenizer
from rag_stack.releases.kv_metrics import read_metrics
from rag_stack.releases.kv_plan import ttft_s
from rag_stack.releases.kv_rate import KvRates, kv_rates
from rag_stack.releases.kv_simulation import hit_rate, simulate
from rag_stack.releases.kv_trace import TracedRequest, read_trace
from rag_stack.serving.overrides import with_overrides

BLOCK_TOKENS = 32
# One of several million tokens, as good as one without an end.
_ENDLESS = 1_000_000
_SALT = "plan-kv"
_QUICK = (80, (120, 72))


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one capacity, from the trace."""

    hit_rate: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What one server did."""

    hit_rate: float
    answers: tuple[Answer, ...]
    wall_s: float
    cpu_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.requests, options.blocks = _QUICK
    # Its servers end with it, also where a time limit ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    console = Console(stderr=True)
    asked = requests(
        options.requests, documents=documents(options.documents, seed=1), exponent=options.zipf, seed=options.seed
    )
    try:
        release = with_overrides(load_release(options.release))
        runs, curve, agree = _measure(release, options, asked, console)
    except (LoadError, RagStackError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result = build_report(runs, attainable=max(curve.values()))
    _print(runs, result)
    if not agree:
        console.print("the runs were not asked the same prompts, so no figure counts", style="red")
    report.write(result, draw(runs, {k: v for k, v in curve.items() if k < _ENDLESS}), directory=options.results)
    return report.exit_code(result, arms_agree=agree)


def predict(trace: Sequence[TracedRequest], rates: KvRates, *, blocks: int, block_tokens: int) -> Prediction:
    """As `rag-stack plan kv` does it for a server of `blocks`, of which vLLM keeps one for itself."""
    served = simulate(trace, capacity_blocks=blocks - 1, block_tokens=block_tokens)
    times = [ttft_s(each, rates, block_tokens=block_tokens) for each in served]
    return Prediction(hit_rate(served), statistics.median(times))


def same_requests(trace: Sequence[TracedRequest], *, blocks: int, block_tokens: int) -> float:
    """The share of requests of which the engine said that it found just what the simulation finds."""
    served = simulate(trace, capacity_blocks=blocks - 1, block_tokens=block_tokens)
    same = [each.cached_tokens == request.cached_tokens for each, request in zip(served, trace, strict=True)]
    return sum(same) / len(same)


def _measure(
    release: Release, options: argparse.Namespace, asked: Sequence[Messages], console: Console
) -> tuple[list[Run], dict[int, float], bool]:
    directory = model_directory(release)
    first, *others = options.blocks
    path = options.logs / "trace.jsonl"
    path.unlink(missing_ok=True)
    recorder = KvTraceRecorder(path, PromptEncoder(GeneratorTokenizer(directory)))
    measured = {first: _run(release, directory, options, asked, blocks=first, recorder=recorder)}
    trace = read_trace(path)
    rates = kv_rates({}, measured={}, traces=[trace])
    predicted = {blocks: predict(trace, rates, blocks=blocks, block_tokens=BLOCK_TOKENS) for blocks in options.blocks}
    for blocks, each in predicted.items():
        console.log(f"predicted with {blocks} blocks: hit rate {each.hit_rate:.1%}, TTFT {each.ttft_s * 1e3:.0f} ms")
    for blocks in options.blocks:
        if blocks in others:
            measured[blocks] = _run(release, directory, options, asked, blocks=blocks, recorder=None)
        console.log(f"measured with {blocks} blocks: hit rate {measured[blocks].hit_rate:.1%}")
    exact = same_requests(trace, blocks=first, block_tokens=BLOCK_TOKENS)
    console.log(f"of the recorded requests {exact:.0%} found just what was simulated")
    agree = len(trace) == len(asked) and len({_work(each.answers) for each in measured.values()}) == 1
    runs = [_compared(blocks, predicted[blocks], each, recorded=blocks == first) for blocks, each in measured.items()]
    return sorted(runs, key=lambda run: run.blocks), _curve(trace, options.blocks), agree


def _run(
    release: Release,
    directory: Path,
    options: argparse.Namespace,
    asked: Sequence[Messages],
    *,
    blocks: int,
    recorder: KvTraceRecorder | None,
) -> Measured:
    """One server with a cache of its own, asked everything once. Raises LoadError."""
    starter = ArmStarter(options.release, _with_cache(release, blocks), directory, logs=options.logs)
    bodies = [request_body(release.model.name, each, max_tokens=options.max_tokens, salt=_SALT) for each in asked]
    with starter("bare") as running:
        cpu, began = running.cpu_seconds(), time.perf_counter()
        if recorder is None:
            answers = ask_all(running.url, bodies, concurrency=options.concurrency)
        else:
            with recorded(running.url, recorder) as url:
                answers = ask_all(url, bodies, concurrency=options.concurrency)
        wall_s, cpu_s = time.perf_counter() - began, running.cpu_seconds() - cpu
        rate = read_metrics(httpx.get(f"{running.url}/metrics", timeout=30).text).hit_rate
    return Measured(rate, tuple(answers), wall_s, cpu_s)


def _with_cache(release: Release, blocks: int) -> Release:
    engine = {
        **release.engine,
        "max_model_len": 1024,
        "max_num_seqs": 4,
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks_override": blocks,
        "enable_prompt_tokens_details": True,
    }
    return release.model_copy(update={"engine": engine})


def _compared(blocks: int, predicted: Prediction, measured: Measured, *, recorded: bool) -> Run:
    return Run(
        blocks=blocks,
        capacity_tokens=blocks * BLOCK_TOKENS,
        predicted=predicted.hit_rate,
        measured=measured.hit_rate,
        predicted_ttft_s=predicted.ttft_s,
        measured_ttft_s=statistics.median(answer.ttft_ms for answer in measured.answers) / 1e3,
        wall_s=measured.wall_s,
        cpu_s=measured.cpu_s,
        requests=len(measured.answers),
        recorded=recorded,
    )


def _work(answers: Sequence[Answer]) -> tuple[tuple[int, int], ...]:
    """Lengths of all prompts and answers: the same in every run."""
    return tuple((answer.prompt_tokens, answer.output_tokens) for answer in answers)


def _curve(trace: Sequence[TracedRequest], blocks: Sequence[int]) -> dict[int, float]:
    """The predicted hit rate by capacity, for the picture."""
    sizes = [round(min(blocks) * 2 ** (n / 4)) for n in range(40)]
    wanted = [*(size for size in sizes if size <= 2 * max(blocks)), _ENDLESS // BLOCK_TOKENS]
    rates: Mapping[int, float] = {
        size * BLOCK_TOKENS: hit_rate(simulate(trace, capacity_blocks=size - 1, block_tokens=BLOCK_TOKENS))
        for size in wanted
    }
    return dict(rates)


def _print(runs: Sequence[Run], result: report.Report) -> None:
    console = Console()
    table = Table(title=f"{runs[0].requests} requests; hit rates are of the prompts' tokens")
    for heading in ("cache, tokens", "predicted", "measured", "error", "TTFT predicted, ms", "measured, ms", "error"):
        table.add_column(heading, justify="right")
    for run in runs:
        error = "none found" if run.error is None else f"{run.error:.1%}"
        ttft = (f"{run.predicted_ttft_s * 1e3:.0f}", f"{run.measured_ttft_s * 1e3:.0f}", f"{run.ttft_error:.0%}")
        table.add_row(str(run.capacity_tokens), f"{run.predicted:.1%}", f"{run.measured:.1%}", error, *ttft)
    console.print(table)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


def _blocks(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if len(set(sizes)) != len(sizes) or min(sizes) * BLOCK_TOKENS < 2048:
        raise ValueError(f"expected different numbers from {2048 // BLOCK_TOKENS}, got {text!r}")
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.plan_kv", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--release", type=Path, default=Path("releases/demo.yaml"))
    add("--blocks", type=_blocks, default=(160, 80, 400), help="caches, in blocks of 32 tokens; the first is recorded")
    add("--requests", type=int, default=240)
    add("--documents", type=int, default=60)
    add("--zipf", type=float, default=1.0, help="exponent of the documents' popularity")
    add("--concurrency", type=int, default=2)
    add("--max-tokens", type=int, default=8)
    add("--seed", type=int, default=7)
    add("--quick", action="store_true", help="80 requests and two small caches")
    add("--logs", type=Path, default=Path("var/loadtests/plan_kv"), help="the trace, and what the servers print")
    add("--results", type=Path, default=report.RESULTS, help="where plan_kv.json and plan_kv.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
