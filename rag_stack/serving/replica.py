"""What a replica of the engine's deployment is, whatever its engine: retrieval, layer, reports. No vLLM in here.

`rag_server` puts vLLM into it. Load tests put a scripted engine into it, where the engine is not the point.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from rag_stack.api.admission import Admission, Limits
from rag_stack.api.auth import KeyRing
from rag_stack.api.health import Readiness
from rag_stack.api.kv_trace import KvTraceRecorder, open_kv_trace
from rag_stack.api.traffic import Traffic
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import Release
from rag_stack.generation.engine_load import Held
from rag_stack.generation.engine_settings import max_sequences
from rag_stack.generation.kv_settings import KvCapacity
from rag_stack.index.gpu_memory import GpuMemory
from rag_stack.metrics import GPU_INDEX_BYTES, KV_CACHE_TOKENS, KV_CACHE_USAGE, MemoryRecorder, Recorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.announcement import keep_announcing
from rag_stack.serving.cache_report import keep_telling
from rag_stack.serving.engine_watch import EngineWatch, Tokens
from rag_stack.serving.first_token import first_token
from rag_stack.serving.following.follow import Follower
from rag_stack.serving.following.membership import follow, leave
from rag_stack.serving.node_fetch import NodeFetch
from rag_stack.serving.opening import OpenRetrieval, build_layer, close_retrieval, open_retrieval
from rag_stack.serving.readiness import StoreTold, cache_part, gpu_part, store_parts
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.request_id import NamedByServe
from rag_stack.serving.rollout.member import ReleaseMember
from rag_stack.serving.routing.balance import Work
from rag_stack.tracing.tracer import UNTRACED, Tracer


class Replica:
    """One replica of a release, as `member` has taken it.

    `check_engine` raises when the engine is dead; `tokens` see EngineWatch. `slots` are the answers that the engine
    generates side by side, where that is not what the release says.
    """

    def __init__(
        self,
        pinned: PinnedRelease,
        *,
        member: ReleaseMember,
        recorder: Recorder,
        start: ReplicaStart,
        check_engine: Callable[[], Awaitable[None]],
        slots: int | None = None,
        tokens: Tokens | None = None,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self.pinned = pinned
        release = pinned.release
        self.admission = Admission(limits(release, slots=slots), recorder=recorder)
        self.traffic = Traffic(ttft_target_s=release.scaling.ttft_target_s, admission=self.admission, recorder=recorder)
        self._member = member
        self._recorder = recorder
        self._tracer = tracer
        self._start = start
        self._watch = EngineWatch(
            self.traffic,
            self.admission,
            stuck_s=release.drain.stuck_s,
            check_engine=check_engine,
            tokens=tokens,
        )
        # What the engine's cache holds, once the engine has said so.
        self.kv_capacity: KvCapacity | None = None
        self._trace: KvTraceRecorder | None = None
        self._retrieval: OpenRetrieval | None = None
        self._follower: Follower | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, tiers: Tiers) -> None:
        """Open the pinned versions, then whatever has been promoted since; from then on, follow."""
        release = self.pinned.release
        gpu = GpuMemory.open(release.gpu_index, stores=len(release.stores), recorder=self._recorder)
        self._retrieval = await asyncio.to_thread(
            open_retrieval,
            self.pinned,
            tiers,
            timeline=self._start.beside,
            recorder=self._recorder,
            fetch_beside=NodeFetch(self.pinned.release.artifacts),
            tracer=self._tracer,
            gpu=gpu,
        )
        self._tasks.append(asyncio.create_task(keep_telling(tiers.cache, self._recorder)))
        self._follower = await follow(self._retrieval, self._recorder)
        self._tasks.append(asyncio.create_task(self._follower.run()))

    async def around(self, engine: ASGIApp, *, model_directory: Path) -> ASGIApp:
        """The engine's app inside our layer, once it has answered a first question and the release's canaries.

        After `open`.
        """
        assert self._retrieval is not None  # noqa: S101 - the order of a start
        layer = build_layer(
            self.pinned,
            self._retrieval,
            model_directory=model_directory,
            readiness=self._readiness,
            recorder=self._recorder,
            tracer=self._tracer,
            kv_capacity=self.kv_capacity,
        )
        self._start.lap("build app")
        # This one is nobody's but ours.
        ours = replace(layer, keys=KeyRing(()), recorder=MemoryRecorder(), tracer=UNTRACED, prefill=None)
        if await first_token(ours.around(engine), self.pinned.release):
            self._start.lap("first token")
        await self._member.prove(ours.around(engine), self.pinned)
        report = self._start.report()
        report.trace(self._tracer)
        announcing = keep_announcing(report, self._recorder, self.pinned.release, kv_cache=self.kv_capacity)
        self._tasks.append(asyncio.create_task(announcing))
        self._tasks.append(asyncio.create_task(self._member.follow(self.traffic)))
        self._tasks.append(asyncio.create_task(self._watch.run()))
        admitting = replace(layer, admission=self.admission)
        self._trace = open_kv_trace(model_directory)
        traced = engine if self._trace is None else self._trace.around(engine)
        return NamedByServe(self.traffic.around(admitting.around(traced)))

    async def check_health(self) -> None:
        """Raise when this replica should be replaced; what waits for its engine is told at once."""
        await self._watch.check()
        await self._member.check_health()

    async def close(self) -> None:
        """The end, once Serve has let the running answers finish: leave the others, stop, unmap, let go of pins.

        The pins of models are the process's own, and go with it. Serve asks for the end of a start, too.
        """
        await self._member.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._follower is not None:
            await leave(self._follower)
        if self._retrieval is not None:
            await asyncio.to_thread(close_retrieval, self._retrieval)
        if self._trace is not None:
            await asyncio.to_thread(self._trace.close)
        await asyncio.to_thread(self._tracer.close)

    def routing_stats(self) -> dict[str, Any]:
        """What the request router learns of this replica, beside what the engine itself reports."""
        standing = self._member.standing()
        release = self.pinned.release
        # What changes with each request is brought to every router each second: not where there is one to choose from.
        if release.routing.affinity != "none" and release.scaling.max_replicas > 1:
            seen = self.traffic.snapshot()
            standing = replace(standing, work=Work(seen.under_way, seen.arrived))
        return standing.to_stats()

    def autoscaling_stats(self, held: Held | None = None) -> dict[str, float]:
        """What the autoscaling policy learns of this replica; the names are those of `scaling.policy.Load`.

        `held` is what the engine says that it has. An engine that does not say is taken to run as many as a replica is
        for: what a client of ours has heard of its answer does not tell, since not every answer is a stream.
        """
        seen = self.traffic.snapshot()
        at_once = int(self.pinned.release.scaling.requests_per_replica) if held is None else held.running
        running = min(seen.under_way, at_once)
        kv_usage = held.kv_usage if held is not None and seen.under_way else 0.0
        self._recorder.record(KV_CACHE_USAGE, kv_usage)
        if self.kv_capacity is not None:
            self._recorder.record(KV_CACHE_TOKENS, self.kv_capacity.tokens)
        if self._retrieval is not None and self._retrieval.gpu is not None:
            self._retrieval.gpu.tell()
        else:
            self._recorder.record(GPU_INDEX_BYTES, 0)
        return {
            "running": running,
            "waiting": seen.under_way - running,
            "waiting_tokens": seen.queued_tokens,
            "kv_usage": kv_usage,
            "arrived": seen.arrived,
            "served": seen.answered + seen.aborted,
            "good": seen.good,
            "load_s": self._start.seconds(),
            "surge": self._member.surge,
        }

    async def _readiness(self) -> Readiness:
        await self.check_health()
        assert self._retrieval is not None  # noqa: S101 - the order of a start
        assert self._follower is not None  # noqa: S101
        lagging = self._follower.lagging()
        of_release = {store.name for store in self.pinned.release.stores}
        stores = store_parts(
            StoreTold(name, state.version, int(name in lagging), of_release=name in of_release)
            for name, state in self._retrieval.shelf.state().items()
        )
        parts = {"engine": "open", **cache_part(self.kv_capacity), **gpu_part(self._retrieval.gpu), **stores}
        return Readiness(ready=True, parts=parts)


def limits(release: Release, *, slots: int | None = None) -> Limits:
    """What a replica of a release takes on."""
    return Limits(
        slots=slots or max_sequences(release.engine),
        queue=release.admission.queue,
        waiting_tokens=release.admission.waiting_tokens,
        target_s=release.scaling.ttft_target_s,
        held=release.wake.hold_requests,
        held_s=release.wake.hold_s,
        heartbeat_s=release.wake.heartbeat_s,
    )
