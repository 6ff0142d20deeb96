import asyncio
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api.traffic import Traffic
from rag_stack.config import Release
from rag_stack.generation.engine_load import Held
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.replica import Replica
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.rollout.choice import Split
from rag_stack.serving.rollout.coordinator import Assignment, Orders
from rag_stack.serving.rollout.member import ReleaseMember
from rag_stack.serving.rollout.tally import Report
from rag_stack.serving.scaling.policy import Load


def _replica() -> Replica:
    release = Release.model_validate(
        {
            "name": "r",
            "model": {"name": "m"},
            "embedder": {"name": "e"},
            "scaling": {"requests_per_replica": 2, "max_replicas": 2},
        }
    )
    recorder = MemoryRecorder()

    async def healthy() -> None: ...

    start = ReplicaStart(recorder, imports_s=(0.0, 0.0))
    start.mark()
    return Replica(
        PinnedRelease(release=release, created_at=0),
        member=ReleaseMember("r", _Coordinator()),
        recorder=recorder,
        start=start,
        check_engine=healthy,
    )


class _Coordinator:
    """Asks for one replica more."""

    async def assign(self, name: str) -> Assignment | None:
        return None

    async def sync(self, name: str, report: Report) -> Orders | None:
        return Orders(split=Split(), surge=1, retire=False, again_s=60.0)


async def test_a_replica_reports_what_the_policy_reads_and_counts_answers_that_are_no_streams(tmp_path: Path) -> None:
    replica = _replica()
    may_end = asyncio.Event()
    began: asyncio.Queue[None] = asyncio.Queue()

    async def chat(_: Request) -> JSONResponse:
        began.put_nowait(None)
        await may_end.wait()
        return JSONResponse({})

    app = replica.traffic.around(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        asked = [asyncio.create_task(client.post("/v1/chat/completions")) for _ in range(3)]
        for _ in range(3):
            await began.get()
        stats = replica.autoscaling_stats()
        assert set(stats) <= set(Load.__slots__)
        assert (stats["running"], stats["waiting"], stats["arrived"], stats["served"]) == (2, 1, 3, 0)
        told = replica.autoscaling_stats(Held(running=1, waiting=1, kv_usage=0.7))
        assert (told["running"], told["waiting"], told["kv_usage"]) == (1, 2, 0.7)
        may_end.set()
        await asyncio.gather(*asked)
    done = replica.autoscaling_stats(Held(running=1, waiting=0, kv_usage=0.7))
    assert (done["running"], done["waiting"], done["served"], done["good"]) == (0, 0, 3, 3)
    assert done["kv_usage"] == 0.0  # nothing is under way: what the engine said last is old
    assert done["load_s"] > 0


async def test_a_rollout_that_asks_for_one_more_is_reported() -> None:
    member = ReleaseMember("r", _Coordinator())
    assert member.surge == 0
    following = asyncio.create_task(member.follow(Traffic(ttft_target_s=1.0)))
    async with asyncio.timeout(10):
        while not member.surge:  # noqa: ASYNC110 - the member has nothing to wait on
            await asyncio.sleep(0)
    following.cancel()
