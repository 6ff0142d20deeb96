"""A replica's side of a rollout, against a coordinator that says what the test wants."""

import asyncio
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rag_stack.api.traffic import Traffic
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Canary, Release
from rag_stack.errors import ReleaseRefusedError
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.rollout import Rollout
from rag_stack.serving.rollout.choice import Split
from rag_stack.serving.rollout.coordinator import Assignment, Orders
from rag_stack.serving.rollout.goal import release_goal
from rag_stack.serving.rollout.member import ReleaseMember, telling_failure
from rag_stack.serving.rollout.tally import Report
from tests.layer import build_layer
from tests.pinnable import publish_model


class Told:
    """A coordinator that keeps what it is told."""

    def __init__(self, assignment: Assignment | None) -> None:
        self.assignment = assignment
        self.orders: Orders | None = None
        self.reports: list[Report] = []
        self.heard = asyncio.Event()

    async def assign(self, name: str) -> Assignment | None:
        return self.assignment

    async def sync(self, name: str, report: Report) -> Orders | None:
        self.reports.append(report)
        self.heard.set()
        return self.orders

    async def next_report(self) -> Report:
        self.heard.clear()
        await self.heard.wait()
        return self.reports[-1]


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    publish_model(tiers.catalog, tmp_path, "tiny", "weights")
    return tiers


@pytest.fixture
def pinned(tiers: Tiers, tmp_path: Path) -> PinnedRelease:
    return pin(release(tmp_path), tiers)


def release(folder: Path, system: str = "Answer.") -> Release:
    return Release.model_validate(
        {
            "name": "r",
            "artifacts": {"root": f"file://{folder}/store", "cache": folder / "cache"},
            "model": {"name": "tiny"},
            "embedder": {"name": "tiny"},
            "prompt": {"system": system},
        }
    )


async def test_a_replica_takes_what_it_is_assigned_and_takes_requests_once_it_follows(
    pinned: PinnedRelease, tiers: Tiers
) -> None:
    told = Told(Assignment(pinned))
    told.orders = Orders(Split(3, "next", 0.5), surge=1, retire=False, again_s=0.01)
    member = ReleaseMember("a", told)
    assert await member.take(pinned, tiers) == pinned
    assert not member.standing().takes
    assert (await told.next_report()).state == "starting"
    following = asyncio.create_task(member.follow(Traffic(ttft_target_s=1.0)))
    while (await told.next_report()).state != "ready":
        pass
    standing = member.standing()
    assert (standing.release, standing.takes, standing.split) == (pinned.version, True, Split(3, "next", 0.5))
    assert member.surge == 1
    await member.check_health()
    told.orders = Orders(Split(4, "next", 1.0), surge=1, retire=True, again_s=0.01)
    while not (await told.next_report()).retiring:
        pass
    assert not member.standing().takes
    with pytest.raises(ReleaseRefusedError):
        await member.check_health()
    following.cancel()


async def test_a_failed_canary_is_told_before_the_start_fails(
    pinned: PinnedRelease, tiers: Tiers, engine: Starlette, tmp_path: Path
) -> None:
    told = Told(Assignment(pinned, (Canary(question="Who?", answer_contains="nobody says this"),)))
    member = ReleaseMember("a", told)
    await member.take(pinned, tiers)
    with pytest.raises(ReleaseRefusedError, match="nobody says this"):
        async with telling_failure(member):
            await member.prove(build_layer(engine, tmp_path / "indexes"), pinned)
    last = told.reports[-1]
    assert last.state == "failed"
    assert [each.passed for each in last.canaries] == [False]


async def test_one_that_serves_answers_the_canaries_of_a_later_rollout_and_goes_on_serving(
    pinned: PinnedRelease, tiers: Tiers, engine: Starlette, tmp_path: Path
) -> None:
    told = Told(Assignment(pinned, (Canary(question="Who?"),), 1.0))
    told.orders = Orders(Split(), surge=0, retire=False, again_s=0.01)
    member = ReleaseMember("a", told)
    await member.take(pinned, tiers)
    await member.prove(build_layer(engine, tmp_path / "indexes"), pinned)
    following = asyncio.create_task(member.follow(Traffic(ttft_target_s=1.0)))
    while (await told.next_report()).canaries_of_s != 1.0:
        pass
    assert [each.passed for each in told.reports[-1].canaries] == [True]
    wrong = Canary(question="Who else?", answer_contains="nobody says this")
    told.orders = Orders(Split(), surge=0, retire=False, again_s=0.01, canaries=(wrong,), canaries_of_s=2.0)
    while (last := await told.next_report()).canaries_of_s != 2.0:
        assert [each.question for each in last.canaries] == ["Who?"]
    assert [(each.question, each.passed) for each in last.canaries] == [("Who else?", False)]
    assert last.state == "ready"
    assert member.standing().takes
    following.cancel()


async def test_one_that_serves_asks_itself_again_what_found_no_room_beside_its_work(
    pinned: PinnedRelease, tiers: Tiers, engine: Starlette, tmp_path: Path
) -> None:
    told = Told(Assignment(pinned))
    member = ReleaseMember("a", told)
    await member.take(pinned, tiers)
    await member.prove(build_layer(engine, tmp_path / "indexes"), pinned)
    engine.state.error = (429, "no room")
    asks = Orders(Split(), surge=0, retire=False, again_s=0.01, canaries=(Canary(question="Who?"),), canaries_of_s=2.0)
    told.orders = asks
    following = asyncio.create_task(member.follow(Traffic(ttft_target_s=1.0)))
    while len(engine.state.requests) < 3:
        assert (await told.next_report()).canaries_of_s == 0.0
    engine.state.error = None
    while (last := await told.next_report()).canaries_of_s != 2.0:
        assert last.canaries == ()
    assert [(each.question, each.passed) for each in last.canaries] == [("Who?", True)]
    following.cancel()


async def test_one_that_serves_tells_of_a_wrong_answer_though_another_question_found_no_room(
    pinned: PinnedRelease, tiers: Tiers
) -> None:
    answers = iter((Response("no room", 429), Response("{}")))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await next(answers)(scope, receive, send)

    told = Told(Assignment(pinned))
    member = ReleaseMember("a", told)
    await member.take(pinned, tiers)
    await member.prove(app, pinned)
    both = (Canary(question="Who?"), Canary(question="Why?"))
    told.orders = Orders(Split(), surge=0, retire=False, again_s=0.01, canaries=both, canaries_of_s=2.0)
    following = asyncio.create_task(member.follow(Traffic(ttft_target_s=1.0)))
    while (last := await told.next_report()).canaries_of_s != 2.0:
        pass
    assert [(each.question, each.passed) for each in last.canaries] == [("Why?", False)]
    following.cancel()


async def test_without_a_plan_it_is_what_was_deployed_and_with_one_what_the_plan_has_as_its_goal(
    pinned: PinnedRelease, tiers: Tiers, tmp_path: Path
) -> None:
    assert release_goal(pinned, tiers) == pinned
    rollout = Rollout(tiers.catalog, "r")
    rollout.apply(pinned)
    following = pin(release(tmp_path, "Answer briefly."), tiers)
    rollout.apply(following, at_once=True)
    goal = release_goal(pinned, tiers)
    assert (goal.version, goal.release.prompt.system) == (following.version, "Answer briefly.")
    assert release_goal(pinned, tiers, serving=goal) == goal


async def test_a_start_that_serve_ends_is_told_as_stopped_and_what_breaks_then_is_no_failure(
    pinned: PinnedRelease, tiers: Tiers
) -> None:
    told = Told(Assignment(pinned))
    member = ReleaseMember("a", told)
    await member.take(pinned, tiers)
    await member.stop()
    with pytest.raises(RuntimeError):
        async with telling_failure(member):
            raise RuntimeError("the engine was shut down")
    await member.follow(Traffic(ttft_target_s=1.0))
    assert told.reports[-1].state == "stopped"
    assert not member.standing().takes


async def test_a_start_that_failed_stays_failed_when_serve_ends_it(pinned: PinnedRelease, tiers: Tiers) -> None:
    told = Told(Assignment(pinned))
    member = ReleaseMember("a", told)
    await member.take(pinned, tiers)
    with pytest.raises(RuntimeError):
        async with telling_failure(member):
            raise RuntimeError("no memory")
    await member.stop()
    assert told.reports[-1].state == "failed"
