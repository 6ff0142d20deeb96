"""What our layer costs: the same prompts in bare vLLM, in Ray Serve LLM without our layer, and in rag_stack.

`python -m loadtests.overhead` serves one release in three ways, one at a time, in an order that turns by one a round.
Ours gets plain questions and retrieves; the other two get the very messages that ours built for its engine. The work is
the same in each: greedy, always `max_tokens` long, equal engine settings, and a new `cache_salt` for each visit, which
is as good as an empty prefix cache. Ours remembers no queries. The goals need the default matrix. CPU seconds are of
all processes of an arm.

Exit code 0: goals met; 1: one is missed; 2: the arms did not do the same work; 3: a server could not be measured.
Complete rounds are saved as they end, and `--resume` continues after the last one.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtests import overhead_plot, report
from loadtests.arms import ARMS, ArmName, ArmStarter, RunningArm
from loadtests.closed_loop import LoadError, Messages, ask_all, final_messages, request_body
from loadtests.overhead_figures import STAGES, arms_agree, build_report
from loadtests.overhead_log import Cell, Log, Settings, Visit, resume
from loadtests.plain_app import model_directory
from loadtests.report import Report, Value
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release, load_release
from rag_stack.errors import RagStackError
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin

QUESTIONS = Path(__file__).parent / "data" / "questions.txt"
CELLS = "32x8,1x1,32x1,1x8"
# HAProxy takes a new replica into service seconds after it answers; until then requests go the slow way round.
WARM_UPS = 4

Start = Callable[[ArmName], AbstractContextManager[RunningArm]]
Tell = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        release = without_query_cache(load_release(options.release))
        questions = tuple(options.questions_file.read_text(encoding="utf-8").splitlines()[: options.questions])
        settings = Settings(what_is_served(release), questions, options.cells)
        log = resume(options.log, settings) if options.resume else Log(settings)
        tell = console.log
        served = options.log.with_name("overhead-release.yaml")
        served.parent.mkdir(parents=True, exist_ok=True)
        served.write_text(release.model_dump_json(exclude_unset=True, indent=1), encoding="utf-8")
        start = ArmStarter(served, release, model_directory(release), logs=options.log.parent)
        deadline = None if options.time_budget_s is None else time.monotonic() + options.time_budget_s

        def keep(log: Log) -> None:
            log.save(options.log)
            report.write(build_report(log), overhead_plot.draw(log), directory=options.results)

        if log.rounds:
            tell(f"continuing after {log.rounds} complete rounds of {options.log}")
            keep(log)  # a finished log makes its report again, without a server
        model = release.model.name
        log = run_rounds(log, start, model=model, rounds=options.rounds, deadline=deadline, keep=keep, tell=tell)
    except (LoadError, RagStackError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result = build_report(log)
    agree = arms_agree(log.visits)
    show(log, result, agree=agree)
    return report.exit_code(result, arms_agree=agree)


def without_query_cache(release: Release) -> Release:
    """Every cell asks the same questions: what ours remembers of the first would be no work in the others."""
    retrieval = release.retrieval.model_copy(update={"query_cache": 0})
    return release.model_copy(update={"retrieval": retrieval})


def what_is_served(release: Release) -> str:
    """The release with the versions that are promoted now, without where it is kept and served: JSON."""
    pinned = pin(release, open_tiers(release.artifacts, MemoryRecorder()))
    return pinned.release.model_dump_json(exclude={"artifacts", "server"})


def run_rounds(
    log: Log,
    start: Start,
    *,
    model: str,
    rounds: int,
    deadline: float | None,
    keep: Callable[[Log], None],
    tell: Tell,
) -> Log:
    """Measure until `rounds` are complete, or until the next would end after `deadline` (of `time.monotonic`).

    At least one round is measured when none is there. `keep` gets the log after each. Raises LoadError.
    """
    longest_s = log.longest_round_s
    while log.rounds < rounds:
        began = time.monotonic()
        if log.rounds and deadline is not None and began + longest_s > deadline:
            tell(f"the time budget ends the run after {log.rounds} of {rounds} rounds")
            break
        log = run_round(log, start, model=model, tell=tell)
        longest_s = max(longest_s, time.monotonic() - began)
        keep(log)
    return log


def run_round(log: Log, start: Start, *, model: str, tell: Tell) -> Log:
    """One visit of every cell of every arm. Raises LoadError."""
    number = log.rounds
    prompts: Sequence[Messages] = log.prompts
    visits: list[Visit] = []
    for arm in order(number):
        tell(f"round {number + 1}: starting {arm}")
        with start(arm) as running:
            asked = _asked(log.settings.questions, arm, prompts)
            warm_up(running, asked, model=model, salt=f"{number}-{arm}-warm-up")
            for cell in log.settings.cells:
                visits.append(visit(running, asked, arm=arm, round_number=number, cell=cell, model=model))
                tell(f"round {number + 1}: {arm} {cell} {visits[-1].wall_s:.1f} s, {visits[-1].rps:.3f} requests/s")
            if not prompts:
                # Last, so that the prompts are not in this arm's measured time and warm nothing before it.
                bodies = _bodies(asked, model=model, max_tokens=1, salt=f"{number}-{arm}-prompts")
                prompts = final_messages(running.url, bodies)
    return log.with_round(visits, prompts=prompts)


def visit(
    running: RunningArm, asked: Sequence[Messages], *, arm: ArmName, round_number: int, cell: Cell, model: str
) -> Visit:
    """Ask everything once, with wall and CPU time of the whole. Raises LoadError."""
    bodies = _bodies(asked, model=model, max_tokens=cell.max_tokens, salt=f"{round_number}-{arm}-{cell}")
    cpu, client_cpu, wall = running.cpu_seconds(), time.process_time(), time.perf_counter()
    answers = ask_all(running.url, bodies, concurrency=cell.concurrency)
    wall_s, client_cpu_s = time.perf_counter() - wall, time.process_time() - client_cpu
    return Visit(
        round=round_number,
        arm=arm,
        cell=cell,
        start_s=running.start_s,
        wall_s=wall_s,
        cpu_s=running.cpu_seconds() - cpu,
        client_cpu_s=client_cpu_s,
        answers=tuple(answers),
    )


def warm_up(running: RunningArm, asked: Sequence[Messages], *, model: str, salt: str) -> None:
    """A few requests like the measured ones, one at a time."""
    ask_all(running.url, _bodies(asked[:WARM_UPS], model=model, max_tokens=2, salt=salt), concurrency=1)


def order(round_number: int) -> tuple[ArmName, ...]:
    """The arms' order in a round: each is first, second and third equally often."""
    turn = round_number % len(ARMS)
    return (*ARMS[turn:], *ARMS[:turn])


def show(log: Log, result: Report, *, agree: bool) -> None:
    """Print the table, our layer's parts and the goals."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or a pipe has no width to keep to
    title = f"{len(log.settings.questions)} questions, rounds: {log.rounds}; means over the rounds with 95 % intervals"
    table = Table(title=title)
    for heading in ("cell", "arm", "requests/s", "tokens/s", "CPU s", "TTFT ms", "TPOT ms", "rps vs bare", "equal"):
        table.add_column(heading, justify="left" if heading in ("cell", "arm") else "right")
    for cell in log.settings.cells:
        for arm in reversed(ARMS):
            keys = ("rps", "tokens_per_s", "cpu_s", "ttft_ms", "tpot_ms", "rps_vs_bare")
            figures = [_with_interval(result, arm, f"{cell}.{key}") for key in keys]
            share = result.arms[arm][f"{cell}.equal_outputs"]
            table.add_row(str(cell), arm, *figures, f"{share:.0%}", end_section=arm == ARMS[0])
    console.print(table)
    for cell in (cell for cell in log.settings.cells if cell.concurrency == 1):
        names = {"router hop": ("ray", "router_hop_ms"), **{stage: ("ours", f"{stage}_ms") for stage in STAGES}}
        names |= {"ours - Ray": ("ours", "added_to_ray_ms"), "unexplained": ("ours", "unexplained_ttft_ms")}
        parts = [f"{name} {_with_interval(result, arm, f'{cell}.{key}')}" for name, (arm, key) in names.items()]
        console.print(f"{cell} in TTFT, ms: {', '.join(parts)}", highlight=False)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)
    if not agree:
        console.print("the arms did not do the same work, so no figure counts", style="red")


def _with_interval(result: Report, arm: str, key: str) -> str:
    value, interval = result.arms[arm].get(key), result.arms[arm].get(f"{key}_95")
    if not isinstance(value, int | float) or not isinstance(interval, tuple):
        return ""
    low, high = interval
    return _short(value) if low != low else f"{_short(value)} ({_short(low)} to {_short(high)})"


def _short(value: Value) -> str:
    return f"{value:.0f}" if isinstance(value, float) and abs(value) >= 100 else f"{value:.3g}"


def _asked(questions: Sequence[str], arm: ArmName, prompts: Sequence[Messages]) -> list[Messages]:
    """What an arm is sent: ours the plain questions, the others the prompts that ours made of them."""
    if arm == "ours":
        return [[{"role": "user", "content": question}] for question in questions]
    if len(prompts) != len(questions):
        raise LoadError(f"expected a prompt for each of {len(questions)} questions, got {len(prompts)}")
    return list(prompts)


def _bodies(asked: Sequence[Messages], *, model: str, max_tokens: int, salt: str) -> list[dict[str, object]]:
    return [request_body(model, messages, max_tokens=max_tokens, salt=salt) for messages in asked]


def _cells(text: str) -> tuple[Cell, ...]:
    cells = tuple(Cell.parse(part) for part in text.split(","))
    if len(set(cells)) != len(cells):
        raise ValueError(f"a cell is given twice in {text!r}")
    return cells


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"expected 1 or more, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--release", type=Path, default=Path("releases/demo.yaml"))
    add("--rounds", type=_positive, default=5)
    add("--questions", type=_positive, default=64, help="ask the first so many")
    add("--questions-file", type=Path, default=QUESTIONS)
    add("--cells", type=_cells, default=_cells(CELLS), help=f"MAX_TOKENSxCONCURRENCY, commas between [{CELLS}]")
    add("--time-budget-s", type=float, help="stop after the last complete round that fits; always measures one")
    add("--resume", action="store_true", help="continue after the last complete round in --log")
    add("--log", type=Path, default=Path("var/loadtests/overhead.json"), help="every single request, for --resume")
    add("--results", type=Path, default=report.RESULTS, help="where overhead.json and overhead.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
