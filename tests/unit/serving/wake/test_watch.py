"""What is told of the engine between its sleep and its first answer."""

import asyncio
from pathlib import Path
from typing import get_args

import pytest

from rag_stack.api.outlook import EngineState
from rag_stack.artifacts.object_store import open_store
from rag_stack.config import Release
from rag_stack.metrics import ENGINE_STATE, MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.start_history import label_of, read_history
from rag_stack.serving.wake.watch import EngineTold, WakeWatch

ASLEEP = EngineTold(0, 0, failed=False)
STARTING = EngineTold(0, 1, failed=False)
READY = EngineTold(1, 1, failed=False)
RELEASE = {"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}}
LABEL = label_of(Release.model_validate(RELEASE))


class Promoted:
    """What is promoted, where the deployed release is not."""

    def __init__(self) -> None:
        self.now: PinnedRelease | None = None

    def __call__(self, serving: PinnedRelease) -> PinnedRelease:
        return self.now or serving


@pytest.fixture
def promoted() -> Promoted:
    return Promoted()


@pytest.fixture
def watch(tmp_path: Path, promoted: Promoted) -> WakeWatch:
    return _watch(tmp_path, promoted)


def pinned(root: Path, **changed: object) -> PinnedRelease:
    release = Release.model_validate({**RELEASE, "artifacts": {"root": f"file://{root}"}, **changed})
    return PinnedRelease(release=release, created_at=0)


def _watch(root: Path, promoted: Promoted | None = None) -> WakeWatch:
    return WakeWatch(pinned(root), ask=lambda: ASLEEP, goal=promoted or Promoted())


def card(ready_at: float, seconds: float) -> dict[str, object]:
    return {"ready_at": ready_at, "seconds": seconds, "stages": []}


@pytest.mark.parametrize(
    ("told", "state"),
    [(ASLEEP, "asleep"), (STARTING, "starting"), (READY, "ready"), (EngineTold(0, 1, failed=True), "failed")],
)
def test_the_state_is_one_word(watch: WakeWatch, told: EngineTold, state: str) -> None:
    watch.see(told, now_s=0)
    assert watch.card()["state"] == state


def test_the_state_is_told_in_gauges_of_which_one_is_1(tmp_path: Path) -> None:
    recorder = MemoryRecorder()
    watch = WakeWatch(pinned(tmp_path), ask=lambda: ASLEEP, goal=Promoted(), recorder=recorder)
    watch.see(STARTING, now_s=0)
    watch.see(READY, now_s=1)
    told = {state: recorder.values(ENGINE_STATE, {"state": state}) for state in get_args(EngineState)}
    assert told == {"asleep": [0, 0], "starting": [1, 0], "ready": [0, 1], "failed": [0, 0]}


async def test_the_estimate_runs_down_while_it_starts(watch: WakeWatch) -> None:
    assert watch.estimate_s(now_s=0) == 60.0
    for number, seconds in enumerate((10.0, 20.0, 40.0)):
        await watch.keep(card(number, seconds), LABEL)
    assert watch.card() == {"state": "asleep", "estimate_seconds": 20.0, "start_seconds": {"p50": 20.0, "p90": 40.0}}
    watch.see(STARTING, now_s=100)
    watch.see(STARTING, now_s=105)
    assert [watch.estimate_s(now_s=now_s) for now_s in (105, 125, 150)] == [15.0, 15.0, 5.0]
    watch.see(READY, now_s=151)
    assert watch.estimate_s(now_s=151) == 0.0
    watch.see(ASLEEP, now_s=200)
    watch.see(STARTING, now_s=300)
    assert watch.estimate_s(now_s=300) == 20.0


async def test_a_start_is_kept_under_what_the_replica_took_and_the_estimate_is_of_what_is_promoted(
    watch: WakeWatch, promoted: Promoted, tmp_path: Path
) -> None:
    """A release that was rolled out starts as fast as it does, and says nothing of the one that was deployed."""
    rolled_out = pinned(tmp_path, engine={"max_num_seqs": 4})
    label = label_of(rolled_out.release)
    await watch.keep(card(1, 12.5), LABEL)
    await watch.keep(card(2, 90.0), label)
    kept = read_history(open_store(f"file://{tmp_path}"), "r")
    assert [(each.label, each.seconds) for each in kept.starts] == [(LABEL, 12.5), (label, 90.0)]
    assert watch.estimate_s(now_s=0) == 12.5
    promoted.now = rolled_out
    await watch.look_at_goal()
    assert watch.estimate_s(now_s=0) == 90.0
    await watch.keep(card(1, 12.5), LABEL)
    assert watch.estimate_s(now_s=0) == 90.0, "a replica that is about to go tells again"
    promoted.now = pinned(tmp_path)
    await watch.look_at_goal()
    assert watch.estimate_s(now_s=0) == 12.5, "it was taken back"


async def test_it_looks_at_what_is_promoted_while_it_runs(tmp_path: Path) -> None:
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def goal(serving: PinnedRelease) -> PinnedRelease:
        loop.call_soon_threadsafe(looked.set)
        return serving

    watch = WakeWatch(pinned(tmp_path), ask=lambda: ASLEEP, goal=goal)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        await looked.wait()
    running.cancel()


async def test_another_process_knows_what_this_one_was_told(watch: WakeWatch, tmp_path: Path) -> None:
    await watch.keep(card(1, 12.5), LABEL)
    other = _watch(tmp_path)
    await other.read()
    assert other.load_time() == watch.load_time() is not None


async def test_a_start_that_is_told_before_the_history_is_read_does_not_replace_it(
    watch: WakeWatch, tmp_path: Path
) -> None:
    await watch.keep(card(1, 12.5), LABEL)
    await _watch(tmp_path).keep(card(2, 20.0), LABEL)
    newest = _watch(tmp_path)
    await newest.read()
    known = newest.load_time()
    assert known is not None
    assert known.count == 2
