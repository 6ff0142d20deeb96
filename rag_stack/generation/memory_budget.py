"""One budget of the memory that a replica has: index, embedder, reranker, engine, cache; refused where it cannot fit.

Two places of memory, two budgets: `host_budget`, which on CPUs holds the engine too, and `device_budget` of a GPU. What
is mapped from files is wanted in memory, and is no reason to refuse: what does not fit is read from the disk. The cache
for keys and values has what is left after all others, unless the release gives it a size.

That is never more than half: vLLM's worker on CPUs refuses a cache that does not fit into what its NUMA node, and its
cgroup, have free by then, and in a cgroup it takes the pages of files for used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rag_stack.errors import ConfigError, MemoryBudgetError
from rag_stack.generation.kv_settings import GIB, KV_VARIABLE, Platform
from rag_stack.generation.replica_parts import ReplicaParts

# What a process has of its own once it has imported all, without weights and cache: of bare vLLM on CPUs, its front end
# 0.62 GiB, its core 0.55, its worker 0.73. Those that are forked share a part of it.
REPLICA_BYTES: Final = int(0.7 * GIB)
CORE_BYTES: Final = int(0.5 * GIB)
WORKER_BYTES: Final = int(0.7 * GIB)
# Of a node's raylet, its agents, Serve's proxy and HAProxy.
RAY_BYTES: Final = int(0.7 * GIB)
# Of the memory, for what grows: requests, pages of files.
_RESERVE: Final = 0.1
# Of what is left, where an index would take it all: the rest of the index comes from the disk, as queries ask for it.
_LEAST_SHARE: Final = 0.25
# Where nobody has said that a replica has this machine to itself.
_UNSIZED_SHARE: Final = 0.5
# Of CUDA's own, in a process that searches there beside the engine's worker: a guess, not run here.
_CONTEXT_BYTES: Final = GIB // 2
# The most that a cache gets of itself, of the memory and of a NUMA node's.
_MOST_SHARE: Final = 0.5
_BLOCKS: Final = "num_gpu_blocks_override"
# vLLM 0.29's own.
_UTILIZATION: Final = 0.92


@dataclass(frozen=True, slots=True)
class Memory:
    """How much there is, who says so, and whether it is the replica's alone; `free_bytes` is what of it is free now.

    `node_bytes` is the smallest of the NUMA nodes that it may lie on.
    """

    size_bytes: int
    source: str
    own: bool = True
    free_bytes: int | None = None
    node_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """What takes memory, how much, and where that number is from; `mapped` is wanted, and not needed."""

    what: str
    size_bytes: int
    source: str
    mapped: bool = False


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What a replica holds in one memory. `cache_bytes` is what the engine's cache gets; None: vLLM chooses.

    `given` says who has set it, where it does not follow from the others. `least_bytes` is one whole context.
    """

    name: str
    memory: Memory
    needs: tuple[Need, ...]
    cache_bytes: int | None = None
    given: str = ""
    least_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """Without what is mapped, and with the least that the cache may be."""
        cache = self.cache_bytes if self.given and self.cache_bytes is not None else self.least_bytes
        return sum(need.size_bytes for need in self.needs if not need.mapped) + cache

    def check(self) -> None:
        """Raise MemoryBudgetError, with the sum and what to change, where it cannot fit."""
        if self.needed_bytes > self.memory.size_bytes:
            raise MemoryBudgetError(f"{self}\n{self._remedy()}")

    def __str__(self) -> str:
        has = f"{_gib(self.memory.size_bytes)} GiB ({self.memory.source})"
        head = f"{self.name} needs {_gib(self.needed_bytes)} GiB and has {has}:"
        needed = [_line(each.what, each.size_bytes, each.source) for each in self.needs if not each.mapped]
        wanted = [
            _line(need.what, need.size_bytes, f"{need.source}; not counted") for need in self.needs if need.mapped
        ]
        return "\n".join((head, *needed, *self._cache(), *wanted))

    def _cache(self) -> tuple[str, ...]:
        if self.given and self.cache_bytes is not None:
            return (_line("KV cache", self.cache_bytes, self.given),)
        if self.least_bytes:
            return (_line("KV cache, at least", self.least_bytes, "one context of engine.max_model_len tokens"),)
        return ()

    def _remedy(self) -> str:
        others = self.needed_bytes - (self.cache_bytes or 0 if self.given else self.least_bytes)
        left = self.memory.size_bytes - others
        if self.given and left > 0:
            setting = self.given.split(" ")[0]
            most = f"{left // GIB} (whole GiB)" if setting.endswith(KV_VARIABLE) else f"worth {left} bytes"
            return f"{setting} may be {most} at most; left out, the cache gets what is left"
        if not self.given and left > 0:
            return "set engine.max_model_len lower, or give the replica more memory"
        return "give the replica more memory, or smaller weights, or an index recipe whose lists are not copied"


def host_budget(
    name: str,
    parts: ReplicaParts,
    memory: Memory,
    *,
    engine: Mapping[str, Any],
    env: Mapping[str, str],
    on: Platform,
    beside: Sequence[Need] = (),
) -> MemoryBudget:
    """Of the host's memory, where the engine runs on CPUs or on GPUs; `beside` is what others take of it.

    Raises ConfigError for a size that is none.
    """
    workers = _workers(engine)
    needs = [
        Need("replica's process", REPLICA_BYTES, "what its imports take"),
        Need("engine's processes", CORE_BYTES + workers * WORKER_BYTES, f"imports, of a core and workers: {workers}"),
        *_retrieval(parts),
        *beside,
    ]
    if on == "gpu":
        if (offload := engine.get("kv_offloading_size")) is not None:
            needs.append(Need("KV offload", int(float(offload) * GIB), "engine.kv_offloading_size"))
        return MemoryBudget(name, memory, tuple(needs))
    needs.append(Need("engine's weights", parts.weight_bytes, parts.weight_source))
    needs.append(Need("files of the weights", parts.weight_bytes, "pages that are read ahead", mapped=True))
    given = _given(engine, env, workers=workers, token_bytes=parts.token_bytes.value)
    if given is not None:
        return MemoryBudget(name, memory, tuple(needs), given[0], given[1], parts.context_bytes)
    cache = max(parts.context_bytes, _left(needs, memory))
    return MemoryBudget(name, memory, tuple(needs), cache, "", parts.context_bytes)


def device_budget(
    name: str, parts: ReplicaParts, memory: Memory, *, engine: Mapping[str, Any], index_bytes: int = 0
) -> MemoryBudget:
    """Of one GPU, of which vLLM takes a share and fills it with its cache; `index_bytes` are of an index there."""
    given = engine.get("kv_cache_memory_bytes")
    # With a size for its cache, vLLM heeds no share.
    share = 1.0 if given is not None else float(engine.get("gpu_memory_utilization", _UTILIZATION))
    usable = Memory(int(memory.size_bytes * share), f"{share:g} of {_gib(memory.size_bytes)} GiB, {memory.source}")
    workers = _workers(engine)
    needs = [Need("engine's weights", parts.weight_bytes // workers, f"{parts.weight_source}, over {workers} GPUs")]
    # Other precisions, and weights that stay in the host's memory, take less than their files.
    if engine.get("quantization") or engine.get("cpu_offload_gb"):
        needs = []
    if index_bytes:
        needs.append(Need("index on the GPU", index_bytes, "its placement"))
    cache, source = (int(given), "engine.kv_cache_memory_bytes") if given is not None else (None, "")
    return MemoryBudget(name, usable, tuple(needs), cache, source, parts.context_bytes // workers)


def engine_share(name: str, memory: Memory, *, engine: Mapping[str, Any], index_bytes: int) -> float:
    """The `gpu_memory_utilization` that leaves room for an index on a GPU: as given, else vLLM's own less the index.

    vLLM has one for all its workers. The index lies on rank 0's GPU, and the other ranks leave as much unused. Raises
    MemoryBudgetError where it cannot be.
    """
    taken = index_bytes + _CONTEXT_BYTES
    left = 1 - taken / memory.size_bytes
    given = engine.get("gpu_memory_utilization")
    share = min(left, _UTILIZATION - taken / memory.size_bytes) if given is None else float(given)
    if 0 < share <= left:
        return math.floor(share * 1000) / 1000 if given is None else share
    has = f"{_gib(memory.size_bytes)} GiB ({memory.source})"
    told = "nothing would be left for the engine" if given is None else f"engine.gpu_memory_utilization is {given}"
    most = max(0.0, math.floor(left * 1000) / 1000)
    raise MemoryBudgetError(
        f"{name} needs a share of a GPU of {has}, on which the index takes {_gib(index_bytes)} GiB "
        f"(gpu_index.memory_bytes) and its process {_gib(_CONTEXT_BYTES)}: that leaves {most:g}, and {told}; leave the "
        "setting out or lower it, or give the index less"
    )


def cache_setting(budget: MemoryBudget, engine: Mapping[str, Any]) -> dict[str, int]:
    """The engine setting that gives the cache what is left, of each worker; none where the release has given bytes.

    A number of blocks is no size to vLLM's worker on CPUs: without one it asks for a share of the whole machine.
    """
    blocks = budget.given.startswith(f"engine.{_BLOCKS}") and engine.get("kv_cache_memory_bytes") is None
    if budget.cache_bytes is None or (budget.given and not blocks):
        return {}
    return {"kv_cache_memory_bytes": budget.cache_bytes // _workers(engine)}


def _retrieval(parts: ReplicaParts) -> list[Need]:
    needs = [Need(f"embedder {parts.embedder}", parts.embedder_bytes, "its manifest")]
    if parts.reranker:
        needs.append(Need(f"reranker {parts.reranker}", parts.reranker_bytes, "its manifest"))
    if parts.query_cache_bytes:
        needs.append(Need("query cache, at most", parts.query_cache_bytes, "retrieval.query_cache; 0: none"))
    for index in parts.indexes:
        if index.copied_bytes:
            needs.append(Need(f"index {index.name}, copied", index.copied_bytes, "its manifest, lists of FastScan"))
        needs.append(Need(f"index {index.name}, mapped", index.mapped_bytes, "its manifest", mapped=True))
    return needs


def _left(needs: list[Need], memory: Memory) -> int:
    """What the cache may have: after the others, after the index, after a reserve."""
    needed = sum(need.size_bytes for need in needs if not need.mapped)
    mapped = sum(need.size_bytes for need in needs if need.mapped)
    left = int(memory.size_bytes * (1 - _RESERVE)) - needed
    if not memory.own:
        free = memory.size_bytes if memory.free_bytes is None else memory.free_bytes
        left = int(min(left, free - needed) * _UNSIZED_SHARE)
    most = int(min(memory.size_bytes, memory.node_bytes or memory.size_bytes) * _MOST_SHARE)
    return min(max(0, left - mapped, int(left * _LEAST_SHARE)), most)


def _given(
    engine: Mapping[str, Any], env: Mapping[str, str], *, workers: int, token_bytes: int | None
) -> tuple[int, str] | None:
    """What the release, or the environment, has set; in the order in which vLLM's CPU platform heeds it.

    A number of blocks whose size cannot be told is none. Nor is `gpu_memory_utilization`: a share of the machine, or of
    the cgroup, which vLLM takes for the worker's own, whatever else lives there.
    """
    if (blocks := engine.get(_BLOCKS)) is not None and token_bytes is not None:
        tokens = int(blocks) * int(engine.get("block_size") or 128)
        return tokens * token_bytes, f"engine.{_BLOCKS} ({tokens} tokens)"
    if text := env.get(KV_VARIABLE):
        if not text.isdecimal():
            raise ConfigError(f"{KV_VARIABLE} is {text!r}; expected whole GiB, such as 4")
        return int(text) * GIB * workers, f"engine_env.{KV_VARIABLE}"
    if (size := engine.get("kv_cache_memory_bytes")) is not None:
        return int(size) * workers, "engine.kv_cache_memory_bytes"
    return None


def _workers(engine: Mapping[str, Any]) -> int:
    return int(engine.get("tensor_parallel_size") or 1) * int(engine.get("pipeline_parallel_size") or 1)


def _line(what: str, size_bytes: int, source: str) -> str:
    return f"  {what:<38} {_gib(size_bytes):>8} GiB  {source}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f}"
