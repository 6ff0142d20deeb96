"""What reading a prompt ahead of a rerank saves, and what it costs where there is nothing to save.

`python -m loadtests.overlap` asks the same questions of our layer twice, with prefill ahead and without, one answer at
a time and in turn; each answer has a cache salt of its own, as good as an empty prefix cache. Retrieval, prompt and
citations are the real ones over the release's index. What reads the prompts is, by cell:

device  a stand-in for an engine on another device (loadtests/scripted_prefill.py): it reads so many tokens a second
        and computes nothing, so that a rerank on this machine's cores and a prefill do not compete. The goals are
        about these cells; what they show is that the overlap happens, and not how fast any GPU is
vllm    the real engine on this machine's cores, with --vllm: whether real prefix caching and a real abort behave so.
        A rerank that computes here takes the engine's cores while it does

The rerank is one that waits for a time and leaves the first documents in their places, all of them or some; or, with
--reranker NAME, a published cross-encoder, whose cell shows how much stays on real data. The possible overlap of an
answer is the shorter of its rerank and of the engine's time for what is known of its prompt, as the arm without shows.

Exit code 0: goals met; 1: one is missed; 2: an answer differed between the arms; 3: not measured.
"""

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from starlette.types import ASGIApp

from loadtests import overlap_plot, report
from loadtests.arms import ArmStarter
from loadtests.closed_loop import LoadError
from loadtests.overlap_app import (
    Answered,
    EngineElsewhere,
    Opened,
    TimedReranker,
    ask,
    closing,
    open_release,
    told,
)
from loadtests.overlap_figures import ARMS, WITH, Cell, Sample, build_report, differing, sample
from loadtests.plain_app import model_directory
from loadtests.report import Report, Value
from loadtests.scripted_engine import Script, ScriptedEngine
from loadtests.scripted_prefill import Device
from rag_stack.config import ArtifactChoice, Release, load_release
from rag_stack.errors import RagStackError
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.retriever import Reranker
from rag_stack.serving.opening import open_reranker
from rag_stack.timeline import Timeline

QUESTIONS: Final = Path(__file__).parent / "data" / "questions.txt"
LOGS: Final = Path("var/loadtests")
_TOP_K: Final = 4
_MAX_TOKENS: Final = 4
# Of the time to the first token, what a rerank takes that the goal is about.
_LEAST_SHARE: Final = 0.1
# The arm with prefill learns from what it sees, as a replica does after its start: these are not measured.
_WARM_UPS: Final = 10
DEVICE: Final = Device(tokens_per_s=2000.0, chunk_tokens=256)
CELLS: Final = (
    Cell("fast", 0.002, _TOP_K, counts="fast"),
    Cell("tenth", 0.08, _TOP_K, counts="share"),
    Cell("half", 0.3, _TOP_K, counts="share"),
    Cell("long", 1.0, _TOP_K, counts="share"),
    Cell("two stay", 0.3, 2),
    Cell("none stays", 0.3, 0, counts="wrong"),
)
VLLM_CELLS: Final = (
    Cell("vllm fast", 0.002, _TOP_K, engine="vllm"),
    Cell("vllm half", 1.0, _TOP_K, engine="vllm"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    release: Release
    questions: tuple[str, ...]
    cells: tuple[Cell, ...]
    warm_ups: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        plan = _plan(options)
        with ExitStack() as held:
            url = held.enter_context(_vllm(options.release, plan.release)) if options.vllm else ""
            result, wrong = asyncio.run(measure(plan, vllm_url=url, tell=console.log))
    except (LoadError, RagStackError, RuntimeError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    report.write(result, overlap_plot.draw(plan.cells, result), directory=options.results)
    show(plan.cells, result)
    for line in wrong[:5]:
        print(f"the arms answered differently: {line}")
    return report.exit_code(result, arms_agree=not wrong)


async def measure(plan: Plan, *, vllm_url: str, tell: Callable[[str], None]) -> tuple[Report, list[str]]:
    """All cells, one after another; also which answers differed."""
    opened = await asyncio.to_thread(open_release, plan.release)
    samples: list[Sample] = []
    outcomes: dict[str, dict[str, int]] = {}
    answers: dict[str, dict[str, list[Answered]]] = defaultdict(lambda: defaultdict(list))
    for cell in plan.cells:
        reranker = await asyncio.to_thread(_reranker, cell, opened)
        recorder = MemoryRecorder()
        async with _apps(cell, opened, reranker, recorder, vllm_url=vllm_url) as apps:
            began, cpu = time.perf_counter(), time.process_time()
            await _warm_up(cell, apps, plan)
            before = told(recorder)
            for number, question in enumerate(plan.questions):
                for arm in ARMS if number % 2 else reversed(ARMS):
                    answer = await _ask(apps[arm], question, plan, salt=f"{cell.name}-{arm}-{number}")
                    answers[cell.name][arm].append(answer)
                    samples.append(sample(cell, answer, arm=arm, number=number))
            outcomes[cell.name] = {key: count - before[key] for key, count in told(recorder).items()}
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
            tell(f"{cell.name}: {wall_s:.0f} s, of them {cpu_s:.0f} CPU s in this process; {outcomes[cell.name]}")
    facts: dict[str, Value] = {
        "device_tokens_per_s": DEVICE.tokens_per_s,
        "device_chunk_tokens": DEVICE.chunk_tokens,
        "questions": len(plan.questions),
        "warm_ups": plan.warm_ups,
    }
    return build_report(plan.cells, samples, told=outcomes, facts=facts), differing(answers)


def show(cells: Sequence[Cell], result: Report) -> None:
    """A line a cell, and the goals."""
    for cell in cells:
        without, ahead = (result.arms[f"{cell.name} {arm}"] for arm in ARMS)
        figures = {
            "rerank": f"{without['rerank_s']:.3f} s",
            "engine": f"{without['engine_s']:.3f} s",
            "first token": f"{without['ttft_s']:.3f} s without, {ahead['ttft_s']:.3f} s with prefill",
            "with / without": f"{ahead['cost']:.3f}",
            "share of the possible": f"{ahead['share']:.2f}" if _is_slow(ahead) else "-",
            "read ahead": f"{ahead.get('started', 0)}, used {ahead.get('used', 0)}",
        }
        print(f"{cell.name:<12}" + "; ".join(f"{key} {value}" for key, value in figures.items()))
    print("\n".join(report.goal_lines(result)))


def _is_slow(arm: Mapping[str, Value | Sequence[float]]) -> bool:
    """Whether there was anything to save that is more than noise."""
    retrieval = arm["retrieval_share"]
    return "share" in arm and isinstance(retrieval, float) and retrieval >= _LEAST_SHARE


@asynccontextmanager
async def _apps(
    cell: Cell, opened: Opened, reranker: Reranker, recorder: MemoryRecorder, *, vllm_url: str
) -> AsyncIterator[dict[str, ASGIApp]]:
    """Our layer around the cell's engine, without and with prefill."""
    async with AsyncExitStack() as held:
        apps = {}
        for arm in ARMS:
            engine: ASGIApp
            if cell.engine == "vllm":
                engine = await held.enter_async_context(closing(EngineElsewhere(vllm_url)))
            else:
                model = opened.pinned.release.model.name
                engine = ScriptedEngine(Script(device=DEVICE, token_s=0.005), model=model).app()
            ahead = arm == WITH
            own = recorder if ahead else MemoryRecorder()
            apps[arm] = opened.app(engine, reranker, prefill=ahead, recorder=own)
        yield apps


async def _warm_up(cell: Cell, apps: dict[str, ASGIApp], plan: Plan) -> None:
    for number in range(plan.warm_ups):
        for arm in ARMS:
            question = plan.questions[number % len(plan.questions)]
            await _ask(apps[arm], question, plan, salt=f"{cell.name}-{arm}-warm-up-{number}")


async def _ask(app: ASGIApp, question: str, plan: Plan, *, salt: str) -> Answered:
    return await ask(app, question, model=plan.release.model.name, max_tokens=_MAX_TOKENS, salt=salt)


def _reranker(cell: Cell, opened: Opened) -> Reranker:
    if not cell.reranker:
        return TimedReranker(cell.seconds, cell.stay)
    release = opened.pinned.release.model_copy(update={"reranker": ArtifactChoice(name=cell.reranker)})
    found = open_reranker(release, opened.tiers, timeline=Timeline(), recorder=MemoryRecorder())
    if found is None:
        raise RuntimeError(f"the reranker {cell.reranker!r} is not published")
    return found


@contextmanager
def _vllm(path: Path, release: Release) -> Iterator[str]:
    """The real engine in a server of its own; yields its address."""
    with ArmStarter(path, release, model_directory(release), logs=LOGS)("bare") as running:
        yield running.url


def _plan(options: argparse.Namespace) -> Plan:
    release = load_release(options.release)
    retrieval = release.retrieval.model_copy(update={"top_k": _TOP_K, "score_threshold": 0.0})
    questions = tuple(options.questions_file.read_text(encoding="utf-8").splitlines()[: options.questions])
    cells = CELLS if not options.vllm_only else ()
    if options.reranker:
        cells = (*cells, Cell(options.reranker, 0.0, _TOP_K, reranker=options.reranker))
    cells = (*cells, *(VLLM_CELLS if options.vllm else ()))
    if options.cells:
        cells = tuple(cell for cell in cells if cell.name in options.cells.split(","))
    update = {"retrieval": retrieval, "reranker": None}
    return Plan(release.model_copy(update=update), questions, cells, options.warm_ups)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.overlap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--release", type=Path, default=Path("releases/demo.yaml"))
    add("--questions", type=int, default=32, help="ask the first so many")
    add("--questions-file", type=Path, default=QUESTIONS)
    add("--warm-ups", type=int, default=_WARM_UPS, help="questions before the measured ones")
    add("--reranker", default="", help="a published reranker, for a cell with real data")
    add("--vllm", action="store_true", help="also the real engine on this machine's cores")
    add("--vllm-only", action="store_true", help="with --vllm: leave the stand-in out")
    add("--cells", default="", help="only these, commas between")
    add("--results", type=Path, default=report.RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
