"""The memory of a replica, where it runs or is to run: by the size of the workers, else of this machine."""

import os
from collections.abc import Mapping

from rag_stack.artifacts.memory import available_bytes, limit_bytes
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import Release
from rag_stack.generation.memory_budget import Memory, MemoryBudget, host_budget
from rag_stack.generation.replica_parts import replica_parts
from rag_stack.serving.size import MEMORY, WorkerSize, on_workers
from rag_stack.serving.wake.runtime import platform


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


def host_memory(size: WorkerSize) -> Memory:
    """A worker's own, where a cluster has told its size; else this machine's, which others use too."""
    if size.memory_bytes is not None:
        return Memory(size.memory_bytes, MEMORY)
    return Memory(limit_bytes(), "this machine", own=False, free_bytes=available_bytes())
