"""The size of a cluster's engine workers, which stands in one place: RAG_STACK_WORKER_*, set on every Ray pod.

From the same values Kubernetes has the pods' requests and limits, so a release of a cluster names none of them. They
are no part of a release's version: the same release serves on workers of another size.

A pod has the values of its own start, and those of one cluster may differ. So the process that builds an application is
the one that reads them, and tells them to whoever runs it.

| variable | what follows |
| --- | --- |
| RAG_STACK_WORKER_GPUS | 0: vLLM's CPU platform; more than 1: `engine.tensor_parallel_size` |
| RAG_STACK_WORKER_CPUS | the CPUs that a replica takes: all, so that no other replica or job lands on its worker |
| RAG_STACK_WORKER_MEMORY | what a replica's memory budget has to share out; without GPUs, a cache for keys and values |
| RAG_STACK_MIN_REPLICAS, RAG_STACK_MAX_REPLICAS | `scaling.min_replicas`, `scaling.max_replicas` |
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from rag_stack.config import Release, ScalingConfig, describe
from rag_stack.errors import ConfigError
from rag_stack.generation.kv_settings import GIB, KV_VARIABLE

GPUS: Final = "RAG_STACK_WORKER_GPUS"
CPUS: Final = "RAG_STACK_WORKER_CPUS"
MEMORY: Final = "RAG_STACK_WORKER_MEMORY"
MIN_REPLICAS: Final = "RAG_STACK_MIN_REPLICAS"
MAX_REPLICAS: Final = "RAG_STACK_MAX_REPLICAS"
# Of its first worker's GPU, what the replica's own actor takes where it searches an index there. The worker takes the
# rest, so that nobody else fits, and Ray shows both the same device.
ACTOR_GPUS: Final = 0.1
_PARALLEL: Final = ("tensor_parallel_size", "pipeline_parallel_size")
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_DECIMAL: Final = {"m": 0.001, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY: Final = {f"{letter}i": float(1024**power) for power, letter in enumerate("KMGTPE", start=1)}
_UNITS: Final = {**_DECIMAL, **_BINARY}


@dataclass(frozen=True, slots=True)
class WorkerSize:
    """What a worker of the engine has, and how many replicas there may be; None where nobody has said."""

    cpus: int | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None


# Where nobody has said anything.
UNSIZED: Final = WorkerSize()


def worker_size(environ: Mapping[str, str] = os.environ) -> WorkerSize:
    """The size as the environment has it. Raises ConfigError for what is no number, or no Kubernetes quantity."""
    cpus, memory = _quantity(environ, CPUS), _quantity(environ, MEMORY)
    return WorkerSize(
        # KubeRay tells Ray whole CPUs, rounded up.
        cpus=None if cpus is None else math.ceil(cpus),
        memory_bytes=None if memory is None else int(memory),
        gpus=_count(environ, GPUS),
        min_replicas=_count(environ, MIN_REPLICAS),
        max_replicas=_count(environ, MAX_REPLICAS),
    )


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: `500m` is 0.5, `64Gi` bytes. Raises ValueError."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity such as 8, 500m, 64Gi or 64G")
    return float(found[1]) * _UNITS[found[2] or ""]


def sized(release: Release, size: WorkerSize) -> Release:
    """The release as it runs on such workers. Raises ConfigError, with both numbers, where it says otherwise."""
    return on_workers(release, size).model_copy(update={"scaling": _scaling(release.scaling, size)})


def on_workers(release: Release, size: WorkerSize) -> Release:
    """What one replica is on such workers, however many there are. Raises ConfigError as `sized` does."""
    _check_cache(release, size)
    return release.model_copy(update={"engine": _engine(release, size)})


def placed(release: Release, size: WorkerSize) -> dict[str, Any] | None:
    """Where a replica goes: Ray Serve LLM's `placement_group_config`, or None where nobody has said a worker's size.

    One replica fills one worker: its bundles take all CPUs and all GPUs, on one node. Ray Serve LLM adds the one CPU of
    the replica's actor to the first, and whatever GPUs it takes (llm/_internal/serve/core/server/llm_server.py). It
    takes none by default, and then sees every device of its worker. With `gpu_index` it has a share of the first
    bundle's, which is rank 0's; what the first has of a GPU is what vLLM's Ray executor asks for, for each worker.
    """
    if size.cpus is None or size.gpus is None:
        return None
    others = float(max(size.cpus - 1, 0))
    if not size.gpus:
        return {"bundles": [{"CPU": others}], "strategy": "STRICT_PACK"}
    first, *rest = gpu_bundles(release)
    return {"bundles": [{**first, "CPU": others}, *rest], "strategy": "STRICT_PACK"}


def gpu_bundles(release: Release) -> list[dict[str, float]]:
    """A bundle for each of an engine's workers; the first leaves room for the actor where that takes a share."""
    bundles: list[dict[str, float]] = [{"GPU": 1} for _ in range(_parallel(release.engine))]
    if release.gpu_index.enabled:
        bundles[0]["GPU"] = 1 - ACTOR_GPUS
    return bundles


def _engine(release: Release, size: WorkerSize) -> dict[str, Any]:
    engine, gpus = release.engine, size.gpus
    if not gpus:
        return engine
    given = [f"engine.{key} {engine[key]}" for key in _PARALLEL if key in engine]
    if not given:
        return engine if gpus == 1 else {**engine, "tensor_parallel_size": gpus}
    if _parallel(engine) != gpus:
        raise _otherwise(" and ".join(given), f"{GPUS} {gpus}", "leave it out of the release: it follows from the size")
    return engine


def _check_cache(release: Release, size: WorkerSize) -> None:
    """Without a look at anything else; the whole sum is a memory budget's, for which the manifests must be read."""
    given, memory = release.engine_env.get(KV_VARIABLE, ""), size.memory_bytes
    if size.gpus == 0 and memory is not None and given.isdecimal() and int(given) * GIB >= memory:
        told = f"{MEMORY} {memory / GIB:g} GiB"
        remedy = "leave it out, and the cache gets what is left, or give the workers more memory"
        raise _otherwise(f"engine_env.{KV_VARIABLE} {given} GiB", told, remedy)


def _scaling(scaling: ScalingConfig, size: WorkerSize) -> ScalingConfig:
    wanted = {
        name: (variable, number)
        for name, variable, number in (
            ("min_replicas", MIN_REPLICAS, size.min_replicas),
            ("max_replicas", MAX_REPLICAS, size.max_replicas),
        )
        if number is not None
    }
    for name, (variable, number) in wanted.items():
        if name in scaling.model_fields_set and getattr(scaling, name) != number:
            given = f"scaling.{name} {getattr(scaling, name)}"
            raise _otherwise(given, f"{variable} {number}", "leave it out of the release: it follows from the size")
    try:
        return ScalingConfig.model_validate(
            {**scaling.model_dump(exclude_unset=True), **{name: number for name, (_, number) in wanted.items()}}
        )
    except ValidationError as exc:
        raise ConfigError(f"the replicas' numbers in {MIN_REPLICAS} and {MAX_REPLICAS}: {describe(exc)}") from exc


def _parallel(engine: Mapping[str, Any]) -> int:
    return math.prod(int(engine.get(key, 1)) for key in _PARALLEL)


def _otherwise(release: str, size: str, remedy: str) -> ConfigError:
    return ConfigError(f"the release says {release}, and the workers' size {size}: {remedy}")


def _quantity(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name, "")
    try:
        return quantity(text) if text else None
    except ValueError as exc:
        raise ConfigError(f"{name}: {exc}") from exc


def _count(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if text and not text.isdecimal():
        raise ConfigError(f"{name} is a number of things, got {text!r}")
    return int(text) if text else None
