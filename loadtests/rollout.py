"""What a change of the release costs those who ask meanwhile: ten changes, three of which go back by themselves.

`python -m loadtests.rollout` serves a release with the scripted engine on a real Ray (two replicas, HAProxy, two
routers, control applications), asks at a steady rate, and applies one release after another: prompts, engine settings,
indexes, and three bad ones: a canary that fails, an engine that does not start, an engine that is slow. At the end it
holds a share and counts, over a thousand POSTs, whose answers they are.

`failed` are requests that a client without retries saw fail. An answer of a version that no plan allowed when it was
asked is `wrong_release`; a session that moved to a new version more than once in a rollout has `moved_too_often`.
Exit code 0: goals met; 1: one is missed; 2: a release went the wrong way, or answers were wrong; 3: not measured.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from matplotlib.figure import Figure
from rich.console import Console

from loadtests import report
from loadtests.local_cluster import started
from loadtests.report import Goal, Report
from loadtests.rollout_changes import MODEL, Change, changes, first_release, quick
from loadtests.rollout_load import Asked, Load, Moment, moved_too_often, wrong_release
from loadtests.scripted_engine import Script
from loadtests.swap_data import publish_models, publish_versions
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.releases.plan import RolloutPlan
from rag_stack.releases.rollout import Rollout
from rag_stack.serving.environment import free_port

_SCRIPT = Script(prefill_s=0.02, token_s=0.01, slots=32)
_HELD_SHARE = 0.3
_SETTLE_S = 4.0
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Changed:
    """One change: which way it went, why, and how long it took until the cluster was as before."""

    kind: str
    expected: str
    outcome: str
    reason: str
    began_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """All that was seen."""

    changed: tuple[Changed, ...]
    asked: tuple[Asked, ...]
    moments: tuple[Moment, ...]
    held: tuple[str, ...]
    held_version: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        run = measure(options, tell=console.log)
    except (TimeoutError, httpx.HTTPError) as exc:
        console.print(f"not measured: {exc!r}", style="red", markup=False)
        return 3
    result = build_report(run)
    report.write(result, draw(run), directory=options.results)
    for line in [*figures(run), *report.goal_lines(result)]:
        sys.stdout.write(line + "\n")
    return report.exit_code(result, arms_agree=all(each.outcome == each.expected for each in run.changed))


def measure(options: argparse.Namespace, *, tell: Tell) -> Run:
    """Publish, serve, change. Blocking: many minutes. Raises TimeoutError when a change does not end."""
    # A raylet that starts on a machine with more to do than cores takes longer than Ray waits for by default.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    with tempfile.TemporaryDirectory(prefix="rollout-", dir=options.folder) as folder:
        first = first_release(folder=folder, port=free_port(), replicas=options.replicas)
        tiers = open_tiers(first.artifacts, MemoryRecorder())
        embedder = publish_models(tiers.catalog, generator=False, tell=tell)
        publish_versions(tiers.catalog, Path(folder) / "built", ["v00", "v01", "v02"], embedder=embedder, rows=2000)
        all_ = list(changes(first))
        tell("starting")
        with started(first, Path(folder), script=_SCRIPT, num_cpus=8) as local:
            tell(f"serving at {local.url}")
            load = Load(local.url, model=MODEL, rate=options.rate, max_tokens=8)
            return asyncio.run(_run(load, first, tiers, quick(all_) if options.quick else all_, options, tell))


async def _run(
    load: Load, first: Release, tiers: Tiers, all_: Iterable[Change], options: argparse.Namespace, tell: Tell
) -> Run:
    rollout = Rollout(tiers.catalog, first.name)
    watch = _Watch(rollout)
    background = [asyncio.create_task(watch.run()), asyncio.create_task(load.run())]
    await asyncio.sleep(_SETTLE_S)
    changed: list[Changed] = []
    release = first
    for change in all_:
        applied = await asyncio.to_thread(rollout.apply, pin(change.release, tiers), reason=change.kind)
        began_s = time.time()
        tell(f"{change.kind}: {applied.version}")
        plan = await watch.until(lambda plan: plan.state == "steady", limit_s=options.change_limit_s)
        ended = plan.ended[-1]
        changed.append(
            Changed(
                change.kind,
                "promoted" if change.promoted else "rolled_back",
                ended.outcome,
                ended.reason,
                began_s,
                ended.ended_s - began_s,
            )
        )
        failed = sum(bool(each.problem) for each in load.asked)
        told = f"{ended.outcome} after {changed[-1].seconds:.0f} s ({ended.reason})"
        tell(f"  {told}; {len(load.asked)} asked, {failed} failed")
        release = change.release if change.promoted else release
        await asyncio.sleep(_SETTLE_S)
    held, version = await _hold(load, release, tiers, rollout, watch, options, tell)
    for task in background:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return Run(tuple(changed), tuple(load.asked), tuple(watch.moments), tuple(held), version)


async def _hold(
    load: Load,
    release: Release,
    tiers: Tiers,
    rollout: Rollout,
    watch: "_Watch",
    options: argparse.Namespace,
    tell: Tell,
) -> tuple[list[str], str]:
    """A rollout that stays in its first step while its share is counted; the load goes on beside."""
    prompt = release.prompt.model_copy(update={"system": "Answer as the last edition of this desk does."})
    held = release.rollout.model_copy(update={"steps": (_HELD_SHARE, 1.0), "step_s": 3600.0, "limit_s": 36000.0})
    pinned = pin(release.model_copy(update={"prompt": prompt, "rollout": held}), tiers)
    applied = await asyncio.to_thread(rollout.apply, pinned, reason="held")
    await watch.until(lambda plan: plan.share == _HELD_SHARE, limit_s=options.change_limit_s)
    await asyncio.sleep(2 * _SETTLE_S)
    tell(f"holding {_HELD_SHARE:.0%} for {options.posts} POSTs")
    found = await load.shares(options.posts, at_once=4)
    await asyncio.to_thread(rollout.rollback, reason="measured")
    await watch.until(lambda plan: plan.state == "steady", limit_s=options.change_limit_s)
    return found, applied.version


class _Watch:
    """Looks at the plan again and again, and remembers when it moved."""

    def __init__(self, rollout: Rollout) -> None:
        self.moments: list[Moment] = []
        self._rollout = rollout
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            plan = await asyncio.to_thread(self._rollout.plan)
            if plan is not None and (not self.moments or plan != self.moments[-1].plan):
                self.moments.append(Moment(time.time(), plan))
                self._moved.set()
            await asyncio.sleep(0.2)

    async def until(self, wanted: Callable[[RolloutPlan], bool], *, limit_s: float) -> RolloutPlan:
        """The first plan from now on that is as wanted. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            # The change that this waits for the end of may not have been seen yet.
            self._moved.clear()
            now = await asyncio.to_thread(self._rollout.plan)
            while now is None or not wanted(now):
                await self._moved.wait()
                self._moved.clear()
                now = self.moments[-1].plan
            return now


def build_report(run: Run) -> Report:
    """The figures, and whether they are good enough."""
    failed = sum(bool(each.problem) for each in run.asked)
    back = sum(each.outcome == "rolled_back" for each in run.changed)
    expected_back = sum(each.expected == "rolled_back" for each in run.changed)
    goals = {
        "rollout.failed": Goal(failed, "<= 0"),
        "rollout.rolled_back": Goal(back, f"== {expected_back}"),
        "rollout.canary_share_error_points": Goal(share_error_points(run), "<= 3"),
        "rollout.wrong_release": Goal(len(wrong_release(run.asked, run.moments)), "<= 0"),
        "rollout.moved_too_often": Goal(moved_too_often(run.asked, run.moments), "<= 0"),
    }
    samples = [
        {
            "round": number,
            "arm": each.outcome,
            "kind": each.kind,
            "reason": each.reason,
            "seconds": each.seconds,
        }
        for number, each in enumerate(run.changed)
    ]
    arms = {
        outcome: {"changes": len(times), "seconds_median": statistics.median(times), "seconds_max": max(times)}
        for outcome in ("promoted", "rolled_back")
        if (times := [each.seconds for each in run.changed if each.outcome == outcome])
    }
    streams = sorted(each.seconds * 1e3 for each in run.asked if not each.problem)
    arms["all"] = {"requests": len(run.asked), "failed": failed, "p50_ms": statistics.median(streams or [0.0])}
    return Report(
        name="rollout",
        machine=report.machine(),
        rounds=len(run.changed),
        samples=samples,
        arms=arms,
        goals=goals,
    )


def share_error_points(run: Run) -> float:
    """By how many points of a hundred the new version's part of the answers differs from its share."""
    if not run.held:
        return float("nan")
    return abs(run.held.count(run.held_version) / len(run.held) - _HELD_SHARE) * 100


def figures(run: Run) -> list[str]:
    """The changes, and the first failures, as lines of text."""
    lines = [f"{each.kind}: {each.outcome} after {each.seconds:.1f} s ({each.reason})" for each in run.changed]
    failures = [each for each in run.asked if each.problem][:5]
    lines += [f"failed: at {each.began_s:.1f} after {each.seconds:.2f} s: {each.problem}" for each in failures]
    wrong = wrong_release(run.asked, run.moments)[:5]
    lines += [f"wrong release: at {each.began_s:.1f}: {each.release}" for each in wrong]
    return [*lines, f"{len(run.asked)} requests, and {len(run.held)} at a held share"]


def draw(run: Run) -> Figure:
    """Every request's time over the run, in its release's colour; what was rolled back is shaded."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    start_s = run.asked[0].began_s if run.asked else 0.0
    versions = list(dict.fromkeys(each.release for each in run.asked if not each.problem))
    for version in versions:
        own = [each for each in run.asked if each.release == version and not each.problem]
        axes.plot([e.began_s - start_s for e in own], [e.seconds * 1e3 for e in own], ".", ms=2, label=version)
    for each in run.changed:
        colour = "#c3a6d8" if each.outcome == "rolled_back" else "#e8e8e8"
        axes.axvspan(each.began_s - start_s, each.began_s - start_s + each.seconds, color=colour, alpha=0.5)
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("an answer, ms")
    axes.set_title("Chats while releases change (grey) and go back (violet); a colour a release")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="three changes, of which one goes back")
    add("--replicas", type=int, default=2)
    add("--rate", type=float, default=5.0, help="requests a second")
    add("--posts", type=int, default=1000, help="POSTs at a held share")
    add("--change-limit-s", type=float, default=1200.0)
    add("--folder", type=Path, default=None, help="where versions and node cache go for the run; a temporary folder")
    add("--results", type=Path, default=report.RESULTS, help="where rollout.json and rollout.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
