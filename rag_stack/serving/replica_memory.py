"""The memory of a replica, where it runs or is to run: by the size of the workers, else of this machine."""

import logging
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from rag_stack.artifacts.memory import available_bytes, limit_bytes, node_bytes
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import Release
from rag_stack.generation.memory_budget import (
    RAY_BYTES,
    Memory,
    MemoryBudget,
    Need,
    device_budget,
    engine_share,
    host_budget,
)
from rag_stack.generation.replica_parts import replica_parts
from rag_stack.serving.size import MEMORY, WorkerSize, on_workers
from rag_stack.serving.wake.runtime import STANDBY_BYTES, platform

_LOG = logging.getLogger(__name__)


def replica_budget(
    release: Release,
    tiers: Tiers,
    size: WorkerSize,
    *,
    compute: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> MemoryBudget:
    """What a replica of a pinned release holds of its host's memory, by the manifests. Blocking. Raises ArtifactError.

    `compute` see `replica_parts`. Whether it fits, `check` of what is returned says.
    """
    on_worker, on = on_workers(release, size), platform(size)
    if on == "cpu" and (share := on_worker.engine.get("gpu_memory_utilization")) is not None:
        _ignored(release.name, str(share))
    return host_budget(
        f"a replica of {release.name!r}",
        replica_parts(on_worker, tiers, compute=compute),
        host_memory(size),
        engine=on_worker.engine,
        env={**environ, **on_worker.engine_env},
        on=on,
        beside=beside(release, size, store_bytes=_object_store_bytes()),
    )


def beside(release: Release, size: WorkerSize, *, store_bytes: int) -> list[Need]:
    """What else lives in a worker; `store_bytes` is its Ray's object store, 0 where that is not known.

    Of a machine that is not the replica's alone, a part is left to others anyway.
    """
    needs = []
    if size.memory_bytes is not None:
        needs.append(Need("Ray of this node", RAY_BYTES, "raylet, agents, proxy, HAProxy"))
        if store_bytes:
            # A bound, and mostly empty: the cache is smaller for it, and it is no reason to refuse.
            needs.append(Need("Ray's object store", store_bytes, "object-store-memory, in /dev/shm", mapped=True))
    if release.wake.standby:
        needs.append(Need("standby", STANDBY_BYTES, "wake.standby, its imports"))
    return needs


def _object_store_bytes() -> int:
    """Of the node of the replica that this process is; 0 in any other, which may be on another kind of node."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return 0
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return 0
    here = context.get_node_id()
    found = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == here]
    return int(sum(found))


@cache
def _ignored(name: str, share: str) -> None:
    _LOG.warning(
        "engine.gpu_memory_utilization %s of release %r is for GPUs: on CPUs the KV cache gets what is left of the "
        "memory; engine.kv_cache_memory_bytes gives it another size",
        share,
        name,
    )


def gpu_budget(
    release: Release, tiers: Tiers, size: WorkerSize, memory: Memory, *, index_bytes: int = 0
) -> MemoryBudget:
    """What an engine's worker holds of one GPU, as above, in the share that `gpu_share` leaves it beside an index.

    Raises MemoryBudgetError where there is no such share.
    """
    on_worker = on_workers(release, size)
    parts = replica_parts(on_worker, tiers)
    engine = {**on_worker.engine, **gpu_share(on_worker, memory, index_bytes=index_bytes)}
    # A cache whose size is given is of the whole device, and of no share that has left the index out.
    there = index_bytes if engine.get("kv_cache_memory_bytes") is not None else 0
    return device_budget(_worker_of(release), parts, memory, engine=engine, index_bytes=there)


def gpu_share(release: Release, memory: Memory, *, index_bytes: int) -> dict[str, float]:
    """The engine setting by which its workers leave `index_bytes` of a GPU; none where there is no index."""
    if not index_bytes:
        return {}
    share = engine_share(_worker_of(release), memory, engine=release.engine, index_bytes=index_bytes)
    return {"gpu_memory_utilization": share}


def _worker_of(release: Release) -> str:
    return f"an engine's worker of {release.name!r}"


def gpu_memory() -> Memory | None:
    """One GPU of this node, as its driver tells; None on CPUs, and where it does not tell. Imports vLLM: seconds.

    Nothing is begun on the device for that. The GPUs of a node are taken to be of one kind.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return None
    try:
        return Memory(current_platform.get_device_total_memory(), str(current_platform.get_device_name()))
    except Exception:  # of a driver's library, whichever it is: vLLM will say better what is wrong with it
        _LOG.warning("how much memory a GPU has is not known, so nothing is checked against it", exc_info=True)
        return None


def host_memory(size: WorkerSize) -> Memory:
    """A worker's own, where a cluster has told its size; else this machine's, which others use too."""
    if size.memory_bytes is not None:
        return Memory(size.memory_bytes, MEMORY, node_bytes=node_bytes())
    return Memory(limit_bytes(), "this machine", own=False, free_bytes=available_bytes(), node_bytes=node_bytes())
