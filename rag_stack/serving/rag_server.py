"""The engine's deployment: vLLM's front end and the mapped index in one process. A shell; the logic is in `opening`."""

# ruff: noqa: I001 - `imports` goes first: what comes after it is a stage of the start
from rag_stack.serving import imports

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from starlette.types import ASGIApp

from rag_stack.api.auth import KeyRing
from rag_stack.api.health import Readiness
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.generation.engine_settings import times_its_start
from rag_stack.generation.weights import ReadAhead, check_files, read_ahead
from rag_stack.metrics import MemoryRecorder, Recorder
from rag_stack.serving.announcement import keep_announcing
from rag_stack.serving.first_token import first_token
from rag_stack.serving.follow import Follower
from rag_stack.serving.membership import follow
from rag_stack.serving.node_agent import cluster_peers
from rag_stack.serving.node_fetch import NodeFetch
from rag_stack.serving.opening import OpenRetrieval, build_layer, fetch_model, open_retrieval
from rag_stack.serving.pinning import PinnedRelease
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.readiness import StoreTold, store_parts
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.request_id import NamedByServe

# Where the release travels inside LLMConfig; Ray Serve LLM binds its server class to that alone.
RELEASE_KEY = "rag_stack_release"
_IMPORTED_S = time.time()


class LocalWeights(CallbackBase):  # type: ignore[misc]  # Ray is untyped here
    """Brings the weights to this node before the engine reads them, in place of Ray's own download."""

    directory: Path
    _start: ReplicaStart
    _tiers: Tiers
    _ahead: ReadAhead

    def __getstate__(self) -> dict[str, Any]:
        """Serve pickles a replica's arguments, and this with them: what is open stays in its own process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_start", "_tiers", "_ahead")}

    def prepare(self, start: ReplicaStart, tiers: Tiers) -> None:
        """With what to fetch, and where to report it; the replica calls this before it starts its engine."""
        self._start, self._tiers = start, tiers

    async def on_before_node_init(self) -> None:
        """Fetch, and skip Ray's remote task: it imports vLLM in one more process only to look at local files."""
        self.ctx.run_init_node = False
        self._start.lap("prepare engine")
        release = PinnedRelease.model_validate(self.llm_config.experimental_configs[RELEASE_KEY]).release
        local = await asyncio.to_thread(
            fetch_model, self._tiers, release.model, timeline=self._start.timeline, check=check_files
        )
        self.directory = local.path
        self._ahead = read_ahead(local.path, release.engine)

    async def on_after_node_init(self) -> None:
        """From here on it is the engine that starts."""
        self._start.mark()

    async def loaded(self, recorder: Recorder) -> None:
        """The engine has its weights: nothing need be read ahead of it any more."""
        await asyncio.to_thread(self._ahead.stop)
        self._ahead.tell(self._start.beside, recorder)


class RagServer(LLMServer):  # type: ignore[misc]
    """An LLMServer whose HTTP app is vLLM's own, wrapped in our layer."""

    async def __init__(self, llm_config: LLMConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        self._recorder = RayRecorder()
        self._start = ReplicaStart(self._recorder, imports_s=(imports.BEGAN_S, _IMPORTED_S))
        self._pinned = PinnedRelease.model_validate(llm_config.experimental_configs[RELEASE_KEY])
        artifacts = self._pinned.release.artifacts
        tiers = open_tiers(artifacts, self._recorder, peers=cluster_peers(artifacts))
        self._weights: LocalWeights = llm_config.get_or_create_callback()
        self._weights.prepare(self._start, tiers)
        self._start.lap("set up replica")
        # Side by side: the index and the embedder open while the engine's processes import and load.
        self._retrieval, _ = await asyncio.gather(self._open(tiers), super().__init__(llm_config))
        self._start.mark()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """VLLM's app inside our layer, once it has answered a first question."""
        engine = await super().__serve_build_asgi_app__()
        layer = build_layer(
            self._pinned,
            self._retrieval,
            model_directory=self._weights.directory,
            readiness=self._readiness,
            recorder=self._recorder,
        )
        self._start.lap("build app")
        ours = replace(layer, keys=KeyRing(()), recorder=MemoryRecorder())  # this one is nobody's but ours
        if await first_token(ours.around(engine), self._pinned.release):
            self._start.lap("first token")
        self._announcing = asyncio.create_task(keep_announcing(self._start.report(), self._recorder))
        return NamedByServe(layer.around(engine))

    async def start_report(self) -> dict[str, Any]:
        """How this replica's start went."""
        return self._start.report().to_wire()

    async def _start_engine(self) -> None:
        """Start the engine, and nothing else: the base class also starts an actor that collects usage statistics."""
        await self.engine.start()
        ready_s = time.time()
        timed = times_its_start(self._pinned.release.engine)
        self._start.engine_ready(await self.collective_rpc("start_report") if timed else [], ready_s=ready_s)
        await self._weights.loaded(self._recorder)

    async def _open(self, tiers: Tiers) -> OpenRetrieval:
        """Open the pinned versions, then whatever has been promoted since; from then on, follow."""
        retrieval = await asyncio.to_thread(
            open_retrieval,
            self._pinned,
            tiers,
            timeline=self._start.beside,
            recorder=self._recorder,
            fetch_beside=NodeFetch(self._pinned.release.artifacts),
        )
        self._follower: Follower = await follow(retrieval, self._recorder)
        self._following = asyncio.create_task(self._follower.run())
        return retrieval

    async def _readiness(self) -> Readiness:
        await self.check_health()
        lagging = self._follower.lagging()
        of_release = {store.name for store in self._pinned.release.stores}
        stores = store_parts(
            StoreTold(name, state.version, int(name in lagging), of_release=name in of_release)
            for name, state in self._retrieval.shelf.state().items()
        )
        return Readiness(ready=True, parts={"engine": "open", **stores})
