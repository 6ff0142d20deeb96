"""What a swap costs those who ask meanwhile: 20 promotions and 5 rollbacks under a steady load.

`python -m loadtests.swap` publishes index versions whose passages name their version, serves the first of them with
the release's control applications (real Ray Serve, real search over HTTP; `--whole` adds the engine and chats), and
promotes one after another over HTTP while it searches at a fixed rate. Windows without a swap lie between the swaps, so
that both are measured in the same minutes. A swap's window is from the call that promotes until half a second after
the first answer of the new version: fetch into the node's cache, open, prefault, flip and unmap are in it.

An answer that fails or names no version is `failed`; one with a passage of another version than it names is `mixed`.
Exit code 0: goals met; 1: one is missed; 3: a server could not be measured.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from matplotlib.figure import Figure
from rich.console import Console

from loadtests import report
from loadtests.arms import START_TIMEOUT_S, wait_until_ready
from loadtests.closed_loop import LoadError
from loadtests.process_tree import ProcessTree, inherited_environment
from loadtests.report import Goal, Report
from loadtests.swap_data import EMBEDDER, INDEX, MODEL, publish_models, publish_versions
from loadtests.swap_load import Asked, Load
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.environment import free_port

QUESTIONS = Path(__file__).parent / "data" / "questions.txt"
# A rollback after every fourth promotion.
_PROMOTIONS_A_ROLLBACK = 4
_AFTER_S = 0.5
# For the answers to what a window asked.
_BETWEEN_S = 0.2
_SWAP_LIMIT_S = 60.0
_RELEASE = """
name: swap
artifacts: {{root: "file://{folder}/store", cache: "{folder}/cache"}}
model: {{name: {model}}}
embedder: {{name: {embedder}}}
stores: [{{name: {index}, index: {index}}}]
engine: {{max_model_len: 2048, enforce_eager: true, max_num_seqs: 4}}
engine_env: {{VLLM_CPU_KVCACHE_SPACE: "1"}}
"""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the run: `version` is what a swap brings; empty for one without a swap. CPU is of all processes."""

    kind: str
    version: str
    began_s: float
    ended_s: float
    cpu_s: float
    served_s: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """All windows and answers."""

    windows: tuple[Window, ...]
    answers: tuple[Asked, ...]

    def asked_in(self, window: Window, route: str = "search") -> list[Asked]:
        """The requests of a route that began in a window."""
        return [a for a in self.answers if a.route == route and window.began_s <= a.began_s < window.ended_s]

    def milliseconds(self, kind: str, route: str = "search") -> list[float]:
        """The latencies in all windows of a kind."""
        windows = [window for window in self.windows if window.kind == kind]
        return [a.seconds * 1e3 for window in windows for a in self.asked_in(window, route) if not a.problem]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        run = measure(options, tell=console.log)
    except (LoadError, TimeoutError) as exc:
        console.print(f"not measured: {exc!r}", style="red", markup=False)
        return 3
    result = build_report(run, options)
    report.write(result, draw(run), directory=options.results)
    for line in [*figures(result), *report.goal_lines(result)]:
        sys.stdout.write(line + "\n")
    return report.exit_code(result)


def measure(options: argparse.Namespace, *, tell: Tell) -> Run:
    """Publish, serve, swap. Blocking: minutes. Raises LoadError, or TimeoutError when a swap does not happen."""
    with tempfile.TemporaryDirectory(prefix="swap-", dir=options.folder) as made:
        folder = Path(made)
        release = folder / "release.yaml"
        model = MODEL if options.whole else EMBEDDER
        release.write_text(_RELEASE.format(folder=folder, model=model, embedder=EMBEDDER, index=INDEX))
        catalog = open_tiers(load_release(release).artifacts, MemoryRecorder()).catalog
        embedder = publish_models(catalog, generator=options.whole, tell=tell)
        names = [f"v{number:02d}" for number in range(options.swaps + 1)]
        tell(f"publishing {len(names)} versions of {options.rows} passages")
        publish_versions(catalog, folder / "built", names, embedder=embedder, rows=options.rows)
        catalog.promote(ArtifactRef("indexes", INDEX, names[0]))
        questions = QUESTIONS.read_text(encoding="utf-8").splitlines()
        with _served(release, whole=options.whole, log=options.log) as (url, tree):
            tell(f"serving at {url}")
            load = Load(url, store=INDEX, questions=questions, rate=options.rate)
            return asyncio.run(_run(load, url, names, tree, options, tell))


async def _run(
    load: Load, url: str, names: Sequence[str], tree: ProcessTree, options: argparse.Namespace, tell: Tell
) -> Run:
    loads = [asyncio.create_task(load.search())]
    if options.whole:
        loads.append(asyncio.create_task(load.chat(MODEL, max_tokens=options.max_tokens)))
    await load.until_served(names[0], limit_s=_SWAP_LIMIT_S)
    await asyncio.sleep(options.warm_up_s)
    windows: list[Window] = []

    async def begin() -> tuple[float, float]:
        # Looking at all processes holds this one up: what is asked meanwhile is in no window.
        cpu_s = await asyncio.to_thread(tree.cpu_seconds)
        return time.perf_counter(), cpu_s

    async def end(kind: str, version: str, began: tuple[float, float], served_s: float | None = None) -> None:
        ended_s = time.perf_counter()
        await asyncio.sleep(_BETWEEN_S)
        cpu_s = await asyncio.to_thread(tree.cpu_seconds) - began[1]
        windows.append(Window(kind, version, began[0], ended_s, cpu_s, served_s))

    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        for number, version in enumerate(names[1:], start=1):
            steps = [("promote", version)]
            if number % _PROMOTIONS_A_ROLLBACK == 0:
                steps.append(("rollback", names[number - 1]))
            for call, wanted in steps:
                began = await begin()
                await asyncio.sleep(options.steady_s)
                await end("steady", "", began)
                began = await begin()
                body = {"version": version} if call == "promote" else {}
                answer = await client.post(f"/admin/indexes/{INDEX}/{call}", json=body)
                if answer.status_code != 200:
                    raise LoadError(f"{call} was answered {answer.status_code}: {answer.text[:500]}")
                served_s = await load.until_served(wanted, limit_s=_SWAP_LIMIT_S)
                await asyncio.sleep(_AFTER_S)
                await end(call, wanted, began, served_s - began[0])
                tell(f"{call} to {wanted}: served after {served_s - began[0]:.2f} s")
    for task in loads:
        task.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    await load.close()
    return Run(tuple(windows), tuple(load.answers))


def build_report(run: Run, options: argparse.Namespace) -> Report:
    """Latency in the windows with a swap against those without, what failed, and what was mixed."""
    swapping = sorted(run.milliseconds("promote") + run.milliseconds("rollback"))
    steady = sorted(run.milliseconds("steady"))
    whole = len([a for a in run.answers if a.problem]), len([a for a in run.answers if a.mixed])
    arms = {kind: _arm(run, kind) for kind in ("steady", "promote", "rollback")}
    arms["all"] = {
        "answers": len(run.answers),
        "chats": len([a for a in run.answers if a.route == "chat"]),
        "failed": whole[0],
        "mixed": whole[1],
        "stale": stale(run),
        "passages": options.rows,
        "rate": options.rate,
        "problems": "; ".join(sorted({a.problem for a in run.answers if a.problem})[:5]),
    }
    goals = {
        "swap.failed": Goal(whole[0], "<= 0"),
        "swap.mixed": Goal(whole[1], "<= 0"),
        "swap.p50_ratio": Goal(quantile(swapping, 0.5) / quantile(steady, 0.5), "<= 1.05"),
        "swap.p99_ratio": Goal(quantile(swapping, 0.99) / quantile(steady, 0.99), "<= 1.5"),
    }
    rounds = sum(window.kind != "steady" for window in run.windows)
    samples = [
        {
            "round": number,
            "arm": window.kind,
            **{key: value for key, value in asdict(window).items() if key != "kind"},
            "requests": len(run.asked_in(window)),
            "p50_ms": quantile(sorted(a.seconds * 1e3 for a in run.asked_in(window)), 0.5),
            "max_ms": max((a.seconds * 1e3 for a in run.asked_in(window)), default=float("nan")),
        }
        for number, window in enumerate(run.windows)
    ]
    return Report(name="swap", machine=report.machine(), rounds=rounds, samples=samples, arms=arms, goals=goals)


def stale(run: Run) -> int:
    """Searches that began after an answer of a swap's new version had come, and still named the old one."""
    swaps = [window for window in run.windows if window.served_s is not None]
    count = 0
    for window in swaps:
        came_s = window.began_s + (window.served_s or 0.0)
        later = [a for a in run.asked_in(window) if a.began_s > came_s and not a.problem]
        count += sum(a.version != window.version for a in later)
    return count


def figures(result: Report) -> list[str]:
    """The arms as lines of text."""
    lines = []
    for name in ("steady", "promote", "rollback"):
        arm = result.arms[name]
        parts = [f"{key} {value:.4g}" for key, value in arm.items() if isinstance(value, int | float)]
        lines.append(f"{name}: {', '.join(parts)}")
    told = ", ".join(f"{key} {value}" for key, value in result.arms["all"].items())
    return [*lines, f"all: {told}"]


def draw(run: Run) -> Figure:
    """Every search's latency over the run, the windows with a swap shaded."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    start_s = run.windows[0].began_s
    asked = [a for a in run.answers if a.route == "search" and not a.problem]
    axes.plot([a.began_s - start_s for a in asked], [a.seconds * 1e3 for a in asked], ".", ms=2, color="#3f6f9f")
    colours = {"promote": "#f2b880", "rollback": "#c3a6d8"}
    for window in run.windows:
        if window.kind in colours:
            axes.axvspan(window.began_s - start_s, window.ended_s - start_s, color=colours[window.kind], alpha=0.5)
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("a search, ms")
    axes.set_title("Searches while index versions are promoted (orange) and rolled back (violet)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, by nearest rank; NaN of none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _arm(run: Run, kind: str) -> dict[str, report.Value | Sequence[float]]:
    windows = [window for window in run.windows if window.kind == kind]
    found = sorted(run.milliseconds(kind))
    seconds = sum(window.ended_s - window.began_s for window in windows)
    cpu_s = sum(window.cpu_s for window in windows)
    arm: dict[str, report.Value | Sequence[float]] = {
        "windows": len(windows),
        "requests": len(found),
        "p50_ms": quantile(found, 0.5),
        "p90_ms": quantile(found, 0.9),
        "p99_ms": quantile(found, 0.99),
        "max_ms": found[-1] if found else float("nan"),
        "wall_s": seconds,
        "cpu_s": cpu_s,
        "cpu_share": cpu_s / seconds if seconds else float("nan"),
        "cpu_ms_a_request": cpu_s * 1e3 / len(found) if found else float("nan"),
    }
    chats = sorted(run.milliseconds(kind, "chat"))
    if chats:
        arm |= {"chats": len(chats), "chat_p50_ms": quantile(chats, 0.5), "chat_max_ms": chats[-1]}
    served = [window.served_s for window in windows if window.served_s is not None]
    if served:
        arm |= {"served_s": statistics.median(served), "served_max_s": max(served)}
    return arm


@contextlib.contextmanager
def _served(release: Path, *, whole: bool, log: Path) -> Iterator[tuple[str, ProcessTree]]:
    port = free_port()
    program = [str(Path(sys.executable).parent / "rag-stack"), "serve", str(release), "--port", str(port)]
    control = [sys.executable, "-m", "loadtests.swap_app", "--release", str(release), "--port", str(port)]
    tree = ProcessTree(program if whole else control, environment=inherited_environment(), log=log)
    url = f"http://127.0.0.1:{port}"
    try:
        ready = "/ready" if whole else f"/v1/vector_stores/{INDEX}"
        wait_until_ready(url + ready, tree, timeout_s=START_TIMEOUT_S)
        yield url, tree
    finally:
        tree.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.swap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--swaps", type=int, default=20, help="promotions; a rollback after every fourth")
    add("--rows", type=int, default=40_000, help="passages of a version, of 384 dimensions")
    add("--rate", type=float, default=15.0, help="searches a second")
    add("--steady-s", type=float, default=4.0, help="seconds without a swap before each")
    add("--warm-up-s", type=float, default=5.0)
    add("--whole", action="store_true", help="the whole stack with its engine, and chats beside the searches")
    add("--max-tokens", type=int, default=16, help="of a chat's answer")
    add("--folder", type=Path, default=None, help="where versions and node cache go for the run; a temporary folder")
    add("--log", type=Path, default=Path("var/loadtests/swap.log"))
    add("--results", type=Path, default=report.RESULTS, help="where swap.json and swap.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
