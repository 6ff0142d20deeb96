"""Serve's builders of a cluster's applications: what `import_path` in a serve.yaml names, one function an application.

Each takes `args: {release: {...}, revision: "..."}`, and runs in a process of its own on whatever node Ray picks,
mostly the head: it reads the object store, and fetches nothing. `revision` does nothing but differ.

Serve tries a builder that fails again at once, a few times, and then the application stays as it was, DEPLOY_FAILED,
until somebody deploys again. So a builder itself sits out an object store that does not answer for a while.
"""

import os
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release, describe
from rag_stack.errors import ConfigError, RagStackError
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.control_apps import control_application
from rag_stack.serving.overrides import with_overrides
from rag_stack.serving.patience import Patience
from rag_stack.serving.prefixes import ADMIN_APP, FILES_APP, HEALTH_APP, MODELS_APP, READY_APP, SEARCH_APP
from rag_stack.serving.seed import deployed_release
from rag_stack.serving.size import sized, worker_size
from rag_stack.serving.wake.runtime import platform

PATIENCE: Final = Patience(limit_s=120.0)


class BuilderArgs(BaseModel):
    """What an application of a serve.yaml has as its `args`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: Release
    revision: str | int = ""  # YAML takes `revision: 2` for a number


def engine(args: dict[str, Any]) -> serve.Application:
    """The engine, at `/`."""
    pinned = pinned_release(args, seeds=True)
    # Here alone: the other builders' processes need no vLLM.
    from rag_stack.generation.engine_settings import check_engine_settings, vllm_fields
    from rag_stack.generation.kv_settings import check_kv_settings, vllm_kv_names
    from rag_stack.serving.app import engine_application

    try:
        check_engine_settings(pinned.release.engine, fields=vllm_fields())
        check_kv_settings(pinned.release.engine, names=vllm_kv_names(), platform=platform(worker_size()))
        _check_memory(pinned)
        return engine_application(pinned)
    except RagStackError as exc:
        raise _told(exc) from None


def vector_stores(args: dict[str, Any]) -> serve.Application:
    """Search and stores, at /v1/vector_stores."""
    return control_application(SEARCH_APP, pinned_release(args))


def files(args: dict[str, Any]) -> serve.Application:
    """Uploads, at /v1/files."""
    return control_application(FILES_APP, pinned_release(args))


def models(args: dict[str, Any]) -> serve.Application:
    """What there is to ask, at /v1/models."""
    return control_application(MODELS_APP, pinned_release(args))


def admin(args: dict[str, Any]) -> serve.Application:
    """Administration, and the coordinator of rollouts, at /admin."""
    return control_application(ADMIN_APP, pinned_release(args, seeds=True))


def health(args: dict[str, Any]) -> serve.Application:
    """Whether a process answers, at /health."""
    return control_application(HEALTH_APP, pinned_release(args))


def ready(args: dict[str, Any]) -> serve.Application:
    """Whether questions are answered, at /ready."""
    return control_application(READY_APP, pinned_release(args))


def release_of(args: dict[str, Any]) -> Release:
    """The release that a serve.yaml holds, as this cluster's environment has it. Raises ConfigError."""
    try:
        given = BuilderArgs.model_validate(args).release
    except ValidationError as exc:
        raise ConfigError(f"the application's args are not valid: {describe(exc)}") from None
    release = with_overrides(given, environ=os.environ)
    # The engine's settings stay as they are: a worker's size is no part of a release's version.
    return release.model_copy(update={"scaling": sized(release, worker_size()).scaling})


def pinned_release(args: dict[str, Any], *, seeds: bool = False, patience: Patience = PATIENCE) -> PinnedRelease:
    """What is built from: see `deployed_release`. Blocking, for as long as the patience lasts.

    Raises RayServeException with one line for whoever looks at the application.
    """
    try:
        release = release_of(args)
        tiers = open_tiers(release.artifacts, MemoryRecorder())
        return patience.call(lambda: deployed_release(release, tiers, seeds=seeds))
    except RagStackError as exc:
        raise _told(exc) from None


def _check_memory(pinned: PinnedRelease) -> None:
    """Raise MemoryBudgetError for what no worker can hold: once here, and not again and again in its replicas.

    Where a cluster has not told its workers' size, each replica looks at its own machine, and not at this one.
    """
    size = worker_size()
    if size.memory_bytes is None:
        return
    from rag_stack.serving.replica_memory import replica_budget

    tiers = open_tiers(pinned.release.artifacts, MemoryRecorder())
    # Of the environment, what every pod has is here too.
    replica_budget(pinned.release, tiers, size).check()


def _told(exc: RagStackError) -> RayServeException:
    """One line, which Serve keeps as the application's message; of any other exception it keeps the traceback."""
    return RayServeException(f"{type(exc).__name__}: {exc.message}")
