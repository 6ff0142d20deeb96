"""Builds the Serve applications of a release: one engine, and small control applications, a route prefix each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from rag_stack.config import Release
from rag_stack.generation.engine_settings import WORKER_CLASS, times_its_start
from rag_stack.serving.control import (
    ADMIN_APP,
    ENGINE_APP,
    FILES_APP,
    MODELS_APP,
    SEARCH_APP,
    AdminServer,
    FilesServer,
    HealthServer,
    ModelsServer,
    SearchServer,
)
from rag_stack.serving.environment import offline_environment
from rag_stack.serving.pinning import PinnedRelease
from rag_stack.serving.rag_server import RELEASE_KEY, LocalWeights, RagServer

_CONTROL: tuple[tuple[str, str, type], ...] = (
    (ADMIN_APP, "/admin", AdminServer),
    (SEARCH_APP, "/v1/vector_stores", SearchServer),
    (FILES_APP, "/v1/files", FilesServer),
    (MODELS_APP, "/v1/models", ModelsServer),
    ("health", "/health", HealthServer),
    ("ready", "/ready", HealthServer),
)
# Every process that searches keeps a question to the coordinator open. Removals and updates of files are answered when
# every process serves without them, up to half a minute later: searches must not wait behind those, and are bounded by
# the retriever's own queue, which answers 429.
_MAX_ONGOING: Mapping[type, int] = {AdminServer: 1000, SearchServer: 1000}


def build_targets(pinned: PinnedRelease, *, model_directory: Path) -> list[serve.RunTarget]:
    """All applications of a release, ready for `serve.run_many`."""
    targets = [serve.RunTarget(_engine(pinned, model_directory), name=ENGINE_APP, route_prefix="/")]
    return [*targets, *control_targets(pinned)]


def control_targets(pinned: PinnedRelease) -> list[serve.RunTarget]:
    """The control applications alone: search and administration without an engine."""
    targets = []
    for name, prefix, server in _CONTROL:
        deployment = serve.deployment(
            serve.ingress()(server),
            name=server.__name__,
            max_ongoing_requests=_MAX_ONGOING.get(server, 100),
            ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": offline_environment()}},
        )
        targets.append(serve.RunTarget(deployment.bind(pinned), name=name, route_prefix=prefix))
    return targets


def _engine(pinned: PinnedRelease, model_directory: Path) -> serve.Application:
    """Ray Serve LLM in direct streaming mode, with our server class."""
    release = pinned.release
    config = LLMConfig(
        model_loading_config={"model_id": release.model.name, "model_source": str(model_directory)},
        engine_kwargs=_engine_arguments(release),
        server_cls=RagServer,
        callback_config={"callback_class": LocalWeights},
        runtime_env={"env_vars": {**offline_environment(), **release.engine_env}},
        experimental_configs={RELEASE_KEY: pinned.model_dump(mode="json")},
        **hardware(release),
    )
    return build_openai_app({"llm_configs": [config]})


def _engine_arguments(release: Release) -> dict[str, Any]:
    """The release's own, with our worker class unless it names one."""
    return {**release.engine, "worker_cls": WORKER_CLASS} if times_its_start(release.engine) else dict(release.engine)


def hardware(release: Release) -> dict[str, Any]:
    """On a machine without an accelerator, vLLM's CPU platform; else Ray's own defaults for GPUs."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    workers = release.engine.get("tensor_parallel_size", 1) * release.engine.get("pipeline_parallel_size", 1)
    return {"accelerator_config": {"kind": "cpu"}, "placement_group_config": {"bundles": [{"CPU": 1}] * workers}}
