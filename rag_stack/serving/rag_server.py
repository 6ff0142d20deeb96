"""The engine's deployment: vLLM's front end and the mapped index in one process. A shell; the logic is in `opening`."""

import asyncio
from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from starlette.types import ASGIApp

from rag_stack.api.health import Readiness
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.opening import OpenRetrieval, build_layer, fetch, open_retrieval
from rag_stack.serving.pinning import PinnedRelease
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.request_id import NamedByServe
from rag_stack.serving.stages import StageClock

# Where the release travels inside LLMConfig; Ray Serve LLM binds its server class to that alone.
RELEASE_KEY = "rag_stack_release"


class LocalWeights(CallbackBase):  # type: ignore[misc]  # Ray is untyped here
    """Brings the weights to this node before the engine reads them, in place of Ray's own download."""

    async def on_before_node_init(self) -> None:
        """Fetch, and skip Ray's remote task: it imports vLLM in one more process only to look at local files."""
        self.ctx.run_init_node = False
        pinned = PinnedRelease.model_validate(self.llm_config.experimental_configs[RELEASE_KEY])
        tiers = open_tiers(pinned.release.artifacts, MemoryRecorder())
        model = pinned.release.model
        await asyncio.to_thread(tiers.ensure_local, tiers.catalog.resolve("models", model.name, model.version))


class RagServer(LLMServer):  # type: ignore[misc]
    """An LLMServer whose HTTP app is vLLM's own, wrapped in our layer."""

    async def __init__(self, llm_config: LLMConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        self._recorder = RayRecorder()
        self._clock = StageClock(self._recorder)
        self._pinned = PinnedRelease.model_validate(llm_config.experimental_configs[RELEASE_KEY])
        self._model_directory: Path | None = None
        # Side by side: the index and the embedder open while the engine's processes import and load.
        with self._clock.time("replica"):
            self._retrieval, _ = await asyncio.gather(asyncio.to_thread(self._open), self._start_timed(llm_config))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """VLLM's app inside our layer."""
        engine = await super().__serve_build_asgi_app__()
        if self._model_directory is None:
            raise RuntimeError("the replica builds its app after it has started")
        layer = build_layer(
            self._pinned,
            self._retrieval,
            model_directory=self._model_directory,
            readiness=self._readiness,
            recorder=self._recorder,
        )
        return NamedByServe(layer.around(engine))

    async def start_report(self) -> list[dict[str, Any]]:
        """The stages of this replica's start."""
        return self._clock.to_wire()

    async def _start_timed(self, llm_config: LLMConfig) -> None:
        with self._clock.time("start engine"):
            await super().__init__(llm_config)

    async def _start_engine(self) -> None:
        """Start the engine, and nothing else: the base class also starts an actor that collects usage statistics."""
        await self.engine.start()

    def _open(self) -> OpenRetrieval:
        tiers = open_tiers(self._pinned.release.artifacts, self._recorder)
        model = self._pinned.release.model
        self._model_directory = fetch(tiers, "models", model.name, model.version, clock=self._clock).path
        return open_retrieval(self._pinned, tiers, clock=self._clock, recorder=self._recorder)

    async def _readiness(self) -> Readiness:
        await self.check_health()
        stores = {f"store {card.name}": card.index_version for card in self._retrieval.cards}
        return Readiness(ready=True, parts={"engine": "open", **stores})
