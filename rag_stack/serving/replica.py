"""What a replica of the engine's deployment is, whatever its engine: retrieval, layer, reports. No vLLM in here.

`rag_server` puts vLLM into it. Load tests put a scripted engine into it, where the engine is not the point.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from rag_stack.api.auth import KeyRing
from rag_stack.api.health import Readiness
from rag_stack.api.traffic import Traffic
from rag_stack.artifacts.tiers import Tiers
from rag_stack.generation.engine_load import Held
from rag_stack.metrics import MemoryRecorder, Recorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.announcement import keep_announcing
from rag_stack.serving.first_token import first_token
from rag_stack.serving.follow import Follower
from rag_stack.serving.membership import follow
from rag_stack.serving.node_fetch import NodeFetch
from rag_stack.serving.opening import OpenRetrieval, build_layer, open_retrieval
from rag_stack.serving.readiness import StoreTold, store_parts
from rag_stack.serving.release_member import ReleaseMember
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.request_id import NamedByServe


class Replica:
    """One replica of a release, as `member` has taken it. `check_engine` raises when the engine is dead."""

    def __init__(
        self,
        pinned: PinnedRelease,
        *,
        member: ReleaseMember,
        recorder: Recorder,
        start: ReplicaStart,
        check_engine: Callable[[], Awaitable[None]],
    ) -> None:
        self.pinned = pinned
        self.traffic = Traffic(ttft_target_s=pinned.release.scaling.ttft_target_s)
        self._member = member
        self._recorder = recorder
        self._start = start
        self._check_engine = check_engine

    async def open(self, tiers: Tiers) -> None:
        """Open the pinned versions, then whatever has been promoted since; from then on, follow."""
        self._retrieval: OpenRetrieval = await asyncio.to_thread(
            open_retrieval,
            self.pinned,
            tiers,
            timeline=self._start.beside,
            recorder=self._recorder,
            fetch_beside=NodeFetch(self.pinned.release.artifacts),
        )
        self._follower: Follower = await follow(self._retrieval, self._recorder)
        self._following = asyncio.create_task(self._follower.run())

    async def around(self, engine: ASGIApp, *, model_directory: Path) -> ASGIApp:
        """The engine's app inside our layer, once it has answered a first question and the release's canaries."""
        layer = build_layer(
            self.pinned,
            self._retrieval,
            model_directory=model_directory,
            readiness=self._readiness,
            recorder=self._recorder,
        )
        self._start.lap("build app")
        ours = replace(layer, keys=KeyRing(()), recorder=MemoryRecorder())  # this one is nobody's but ours
        if await first_token(ours.around(engine), self.pinned.release):
            self._start.lap("first token")
        await self._member.prove(ours.around(engine), self.pinned)
        self._announcing = asyncio.create_task(keep_announcing(self._start.report(), self._recorder))
        self._belonging = asyncio.create_task(self._member.follow(self.traffic))
        return NamedByServe(self.traffic.around(layer.around(engine)))

    async def check_health(self) -> None:
        """Raise when this replica should be replaced."""
        await self._check_engine()
        await self._member.check_health()

    def routing_stats(self) -> dict[str, Any]:
        """What the request router learns of this replica, beside what the engine itself reports."""
        return self._member.standing().to_stats()

    def autoscaling_stats(self, held: Held | None = None) -> dict[str, float]:
        """What the autoscaling policy learns of this replica; the names are those of `scaling.Load`.

        `held` is what the engine says that it has. An engine that does not say is taken to run as many as a replica is
        for: what a client of ours has heard of its answer does not tell, since not every answer is a stream.
        """
        seen = self.traffic.snapshot()
        at_once = int(self.pinned.release.scaling.requests_per_replica) if held is None else held.running
        running = min(seen.under_way, at_once)
        return {
            "running": running,
            "waiting": seen.under_way - running,
            "kv_usage": held.kv_usage if held is not None and seen.under_way else 0.0,
            "arrived": seen.arrived,
            "served": seen.answered + seen.aborted,
            "good": seen.good,
            "load_s": self._start.seconds(),
            "surge": self._member.surge,
        }

    async def _readiness(self) -> Readiness:
        await self.check_health()
        lagging = self._follower.lagging()
        of_release = {store.name for store in self.pinned.release.stores}
        stores = store_parts(
            StoreTold(name, state.version, int(name in lagging), of_release=name in of_release)
            for name, state in self._retrieval.shelf.state().items()
        )
        return Readiness(ready=True, parts={"engine": "open", **stores})
