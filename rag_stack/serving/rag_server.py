"""The engine's deployment: vLLM's front end and the mapped index in one process. A shell; the logic is in `opening`."""

# ruff: noqa: I001 - `imports` goes first: what comes after it is a stage of the start
from rag_stack.serving import imports

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from starlette.types import ASGIApp

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.generation.compile_cache import keep_compiled
from rag_stack.generation.engine_load import EngineLoad
from rag_stack.generation.cpu_threads import take_all_of_few_cores
from rag_stack.generation.engine_settings import engine_arguments, on_this_node, times_its_start
from rag_stack.generation.kv_settings import kv_capacity
from rag_stack.generation.memory_budget import cache_setting
from rag_stack.generation.weights import ReadAhead, check_files, read_ahead
from rag_stack.metrics import Recorder
from rag_stack.serving.device import check_same_device, device_uuid
from rag_stack.serving.node_agent import cluster_peers
from rag_stack.serving.opening import fetch_model
from rag_stack.releases.compatibility import check_change
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.rollout.member import member_of_this_replica, telling_failure
from rag_stack.serving.replica import Replica
from rag_stack.serving.replica_memory import gpu_budget, gpu_memory, gpu_share, replica_budget
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.size import WorkerSize, on_workers
from rag_stack.tracing.tracer import open_tracer

# Where the release travels inside LLMConfig; Ray Serve LLM binds its server class to that alone.
RELEASE_KEY = "rag_stack_release"
# And the size of the workers that it was deployed for: a pod that has started later may read another one.
SIZE_KEY = "rag_stack_size"
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
        # The deployment has only a name there, of which nobody has any files.
        self.llm_config.get_engine_config().hf_model_id = str(local.path)
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
        recorder = RayRecorder()
        self._recorder = recorder
        self._load = EngineLoad()
        self._start = ReplicaStart(recorder, imports_s=(imports.BEGAN_S, _IMPORTED_S))
        deployed = PinnedRelease.model_validate(llm_config.experimental_configs[RELEASE_KEY])
        artifacts = deployed.release.artifacts
        tiers = open_tiers(artifacts, recorder, peers=cluster_peers(artifacts))
        self._member = member_of_this_replica()
        self._pinned = await self._member.take(deployed, tiers)
        async with telling_failure(self._member):
            cache = await asyncio.to_thread(_cache_on_this_node, llm_config, self._pinned, tiers)
            llm_config = as_released(llm_config, deployed, self._pinned, cache=cache)
            self._replica = Replica(
                self._pinned,
                member=self._member,
                recorder=recorder,
                tracer=open_tracer(recorder, os.environ),
                start=self._start,
                check_engine=super().check_health,
                tokens=self._tokens,
            )
            keep_compiled(self._pinned.release)
            take_all_of_few_cores(self._pinned.release.engine)
            self._weights: LocalWeights = llm_config.get_or_create_callback()
            self._weights.prepare(self._start, tiers)
            self._start.lap("set up replica")
            # Side by side: the index and the embedder open while the engine's processes import and load.
            await asyncio.gather(self._replica.open(tiers), super().__init__(llm_config))
        self._start.mark()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """VLLM's app inside our layer, once it has answered a first question."""
        async with telling_failure(self._member):
            engine = await super().__serve_build_asgi_app__()
            return await self._replica.around(engine, model_directory=self._weights.directory)

    async def start_report(self) -> dict[str, Any]:
        """How this replica's start went."""
        return self._start.report().to_wire()

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        await self._replica.check_health()

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the request router learns of this replica: the engine's own, and ours beside it."""
        return {**await super().record_routing_stats(), **self._replica.routing_stats()}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy learns of this replica."""
        return self._replica.autoscaling_stats(self._load.now())

    async def __del__(self) -> None:
        """Serve awaits it when the replica has drained, or to end a start, wherever that has come to."""
        if (member := getattr(self, "_member", None)) is not None:
            await member.stop()
        if (replica := getattr(self, "_replica", None)) is not None:
            await replica.close()
        await super().__del__()

    def _tokens(self) -> dict[str, int]:
        """Tokens of each answer that vLLM works on; its front end keeps them, and tells nobody."""
        processor = getattr(getattr(self.engine, "_engine_client", None), "output_processor", None)
        states = dict(getattr(processor, "request_states", {}))
        return {name: state.detokenizer.num_output_tokens() for name, state in states.items() if state.detokenizer}

    async def _start_engine(self) -> None:
        """Start the engine, and nothing else: the base class also starts an actor that collects usage statistics."""
        await self.engine.start()
        self._load.attach(self.engine._engine_client)  # the hook of vLLM itself; Ray passes no logger of ours on
        ready_s = time.time()
        self._replica.kv_capacity = kv_capacity(self.engine._engine_client)
        slots = engine_slots(self.engine)
        if slots is not None:
            self._replica.admission.set_slots(slots)
        timed = times_its_start(self._pinned.release.engine)
        if self._pinned.release.gpu_index.enabled and (own := device_uuid()):
            check_same_device(own, await self.collective_rpc("device_uuid") if timed else [])
        self._start.engine_ready(await self.collective_rpc("start_report") if timed else [], ready_s=ready_s)
        await self._weights.loaded(self._recorder)


def engine_slots(engine: object) -> int | None:
    """The `max_num_seqs` that vLLM chose, where it tells: by default it depends on the device's memory."""
    config = getattr(getattr(engine, "_engine_client", None), "vllm_config", None)
    slots = getattr(getattr(config, "scheduler_config", None), "max_num_seqs", None)
    return slots if isinstance(slots, int) else None


def _cache_on_this_node(config: LLMConfig, taken: PinnedRelease, tiers: Tiers) -> dict[str, float]:
    """The engine settings that give it what this replica's memory has left; blocking, and before any load.

    Raises MemoryBudgetError where not everything fits.
    """
    release, size = taken.release, WorkerSize(**config.experimental_configs[SIZE_KEY])
    budget = replica_budget(release, tiers, size, compute=on_this_node(release.engine).get("dtype"))
    budget.check()
    share: dict[str, float] = {}
    if (gpu := gpu_memory()) is not None:
        index_bytes = release.gpu_index.memory_bytes if release.gpu_index.enabled else 0
        gpu_budget(release, tiers, size, gpu, index_bytes=index_bytes).check()
        share = gpu_share(release, gpu, index_bytes=index_bytes)
    logging.getLogger(__name__).info("%s", budget)
    return {**cache_setting(budget, on_workers(release, size).engine), **share}


def as_released(
    config: LLMConfig, deployed: PinnedRelease, taken: PinnedRelease, *, cache: Mapping[str, float] | None = None
) -> LLMConfig:
    """The deployment's settings, with those of the release that this replica has taken, and its cache's size.

    Raises IncompatibleReleaseError for one that the deployment cannot be: Serve has given the replica its place and its
    devices before it knows its release.
    """
    check_change(deployed, taken)
    release = on_workers(taken.release, WorkerSize(**config.experimental_configs[SIZE_KEY]))
    copy = config.model_copy(
        update={
            "model_loading_config": config.model_loading_config.model_copy(update={"model_id": release.model.name}),
            "engine_kwargs": {**engine_arguments(release.engine), **(cache or {})},
            "experimental_configs": {**config.experimental_configs, RELEASE_KEY: taken.model_dump(mode="json")},
        }
    )
    # What was made from the deployment's settings, and is made anew from these.
    copy._engine_config = copy._callback_instance = None
    return copy
