"""The memory of a replica, where it runs or is to run: by the size of the workers, else of this machine."""

import logging
import os
from collections.abc import Mapping

from rag_stack.artifacts.memory import available_bytes, limit_bytes
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import Release
from rag_stack.generation.memory_budget import Memory, MemoryBudget, device_budget, engine_share, host_budget
from rag_stack.generation.replica_parts import replica_parts
from rag_stack.serving.size import MEMORY, WorkerSize, on_workers
from rag_stack.serving.wake.runtime import platform

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
    on_worker = on_workers(release, size)
    return host_budget(
        f"a replica of {release.name!r}",
        replica_parts(on_worker, tiers, compute=compute),
        host_memory(size),
        engine=on_worker.engine,
        env={**environ, **on_worker.engine_env},
        on=platform(size),
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
    return device_budget(_worker_of(release), parts, memory, engine=engine)


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
        return Memory(size.memory_bytes, MEMORY)
    return Memory(limit_bytes(), "this machine", own=False, free_bytes=available_bytes())
