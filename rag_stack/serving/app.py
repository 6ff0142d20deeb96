"""Builds the Serve applications of a release: one engine, and small control applications, a route prefix each."""

from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment

from rag_stack.config import Release
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.control_apps import control_targets
from rag_stack.serving.deployment import engine_options, recorded_load_s, with_router
from rag_stack.serving.prefixes import ENGINE_APP
from rag_stack.serving.rag_server import RELEASE_KEY, SIZE_KEY, LocalWeights, RagServer
from rag_stack.serving.size import ACTOR_GPUS, UNSIZED, WorkerSize, gpu_bundles, placed, sized, worker_size
from rag_stack.serving.wake.runtime import platform, replica_runtime


def build_targets(pinned: PinnedRelease) -> list[serve.RunTarget]:
    """All applications of a release, ready for `serve.run_many`."""
    targets = [serve.RunTarget(engine_application(pinned), name=ENGINE_APP, route_prefix="/")]
    return [*targets, *control_targets(pinned)]


def engine_application(pinned: PinnedRelease) -> serve.Application:
    """Ray Serve LLM in direct streaming mode, with our server class. Starts a Ray where none is."""
    # As `build_openai_app` does for direct streaming, with routers of ours.
    return with_router(build_llm_deployment(engine_config(pinned), deployment_cls=serve.ingress()(RagServer)))


def engine_config(pinned: PinnedRelease) -> LLMConfig:
    """What Ray Serve LLM is told. Reads the object store, and no weights."""
    size = worker_size()
    release = sized(pinned.release, size)
    return LLMConfig(
        # Each replica puts the weights' directory on its own node in the place of this name: see LocalWeights.
        model_loading_config={"model_id": release.model.name, "model_source": release.model.name},
        # By these Ray places a replica, which completes them by what its node has: see `as_released`.
        engine_kwargs=dict(release.engine),
        callback_config={"callback_class": LocalWeights},
        runtime_env=replica_runtime(release, size),
        experimental_configs={RELEASE_KEY: pinned.model_dump(mode="json"), SIZE_KEY: asdict(size)},
        # Starts are on record under the release as it was published, without what follows from the size.
        deployment_config={
            **engine_options(release, load_s=recorded_load_s(pinned.release)),
            **actor_share(release, size),
        },
        **hardware(release, size),
    )


def actor_share(release: Release, size: WorkerSize = UNSIZED) -> dict[str, Any]:
    """What of a GPU a replica's actor takes, as Serve's option; nothing on CPUs, or where no index lies on a GPU."""
    if not release.gpu_index.enabled or platform(size) != "gpu":
        return {}
    return {"ray_actor_options": {"num_gpus": ACTOR_GPUS}}


def hardware(release: Release, size: WorkerSize = UNSIZED) -> dict[str, Any]:
    """What a replica takes. Where nobody has said a worker's size, this machine is as those on which replicas run.

    On one without an accelerator that is vLLM's CPU platform, else Ray's own defaults for GPUs.
    """
    if (place := placed(release, size)) is not None:
        return {"accelerator_config": {"kind": "gpu" if size.gpus else "cpu"}, "placement_group_config": place}
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {"placement_group_config": {"bundles": gpu_bundles(release)}} if release.gpu_index.enabled else {}
    workers = release.engine.get("tensor_parallel_size", 1) * release.engine.get("pipeline_parallel_size", 1)
    return {"accelerator_config": {"kind": "cpu"}, "placement_group_config": {"bundles": [{"CPU": 1}] * workers}}
