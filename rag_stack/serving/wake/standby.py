"""A standby: on each node one parked process that has imported all of a replica, and the weights in memory.

Ray starts the node's next replica as a copy of it, and the engine's processes after that: what is left of a start is
to connect, to load weights from memory, and to allocate. It costs the memory of one process that has imported
everything, which replicas that were forked from it share, and that of the weights' files, which is page cache.

An actor a node owns the process. The keeper, in the one application that is always on, owns the actors: they end with
it, and there is one a node since their names say so.
"""

import asyncio
import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rag_stack.artifacts.memory import available_bytes
from rag_stack.artifacts.residency import resident_bytes
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import Release
from rag_stack.errors import ArtifactError
from rag_stack.generation.fork_start import ENGINE_MODULES, ForkServerProcess, platform_environment
from rag_stack.generation.weights import WEIGHTS, check_files, read_ahead
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.retrieval.onnx_session import ONNX_FILE
from rag_stack.serving.node_agent import cluster_peers
from rag_stack.serving.size import UNSIZED, WorkerSize
from rag_stack.serving.wake.runtime import engine_environment, platform, standby_name

NAMESPACE: Final = "rag_stack.standby.1"
# What a replica imports beyond its engine, down to what it would import only when it builds its application.
REPLICA_MODULES: Final = (
    "ray._private.workers.default_worker",
    "ray.serve._private.replica",
    "rag_stack.serving.rag_server",
    "vllm.entrypoints.openai.api_server",
    "vllm.renderers.hf",
    "vllm.v1.engine.async_llm",
)
# What an embedder brings with it that has no graph.
TORCH_ENCODER: Final = "rag_stack.retrieval.torch_encoder"
# What the parked process takes before anything is forked from it, with room for its imports to peak.
PROCESS_BYTES: Final = 1_500_000_000
_READY_S: Final = 300.0
_LOOK_S: Final = 1.0
_AGAIN_S: Final = 60.0
_KEEP_S: Final = 5.0
_LOG: Final = logging.getLogger("ray.serve")


class Standby:
    """A node's: holds the fork server, begins it again when it ends, and keeps the weights' pages in memory."""

    def __init__(
        self,
        name: str,
        release: Release,
        size: WorkerSize = UNSIZED,
        *,
        modules: Sequence[str] = (*ENGINE_MODULES, *REPLICA_MODULES),
    ) -> None:
        self._name = name
        self._release = release
        self._size = size
        self._modules = modules
        self._server: ForkServerProcess | None = None
        self._maps: list[mmap.mmap] = []
        self._starts = 0
        self._ready = False

    async def run(self) -> None:
        """Until cancelled, or the actor ends."""
        tiers = open_tiers(self._release.artifacts, MemoryRecorder(), peers=cluster_peers(self._release.artifacts))
        await asyncio.to_thread(self._hold_weights, tiers)
        self._modules = (*self._modules, *await asyncio.to_thread(embedder_modules, self._release, tiers))
        while True:
            if self._server is None or self._server.ended():
                self._ready = False
                self._ready = await asyncio.to_thread(self._park)
            elif not self._ready:  # its imports take longer than was waited for
                self._ready = await asyncio.to_thread(self._server.wait_ready, timeout_s=_READY_S)
            # One that cannot be parked now costs an import at each attempt.
            await asyncio.sleep(_LOOK_S if self._ready else _AGAIN_S)

    def state(self) -> dict[str, Any]:
        """Plain values: the parked process, how often one was started, and what is resident for it."""
        server = self._server
        pid = None if server is None or server.ended() else server.pid
        return {
            "pid": pid,
            "ready": pid is not None and self._ready,
            "starts": self._starts,
            "memory_bytes": 0 if pid is None else _memory_bytes(pid),
            "weights_bytes": sum(len(each) for each in self._maps),
        }

    def stop(self) -> None:
        """End the parked process; what it has forked lives on."""
        if self._server is not None:
            self._server.stop()

    def _park(self) -> bool:
        """Whether there is one that forks. Blocking."""
        if (room := available_bytes()) < PROCESS_BYTES:
            _LOG.warning("no standby on this node: %d bytes are available and it may take %d", room, PROCESS_BYTES)
            return False
        more = platform_environment(platform(self._size), os.environ)
        self._server = ForkServerProcess(self._name, self._modules, environ=os.environ, more=more)
        self._starts += 1
        return self._server.wait_ready(timeout_s=_READY_S)

    def _hold_weights(self, tiers: Tiers) -> None:
        """Read the files, and map them: pages that a process maps are the last that the kernel lets go."""
        release, model = self._release, self._release.model
        try:
            manifest = tiers.resolve("models", model.name, model.version, digest=model.digest)
            check_files(manifest)
            local = tiers.ensure_local(manifest)
        except ArtifactError as exc:
            _LOG.warning("the standby holds no weights: %s", exc)
            return
        self._pin = local.pin
        read_ahead(local.path, release.engine).join()
        for path in sorted(local.path.rglob(f"*{WEIGHTS}")):
            with path.open("rb") as file:
                if resident_bytes(path) == path.stat().st_size:
                    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                    self._maps.append(mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ))


def embedder_modules(release: Release, tiers: Tiers) -> tuple[str, ...]:
    """What a replica imports for its embedder alone, by the manifest: without a graph, torch's encoder. Blocking."""
    embedder = release.embedder
    try:
        manifest = tiers.resolve("models", embedder.name, embedder.version, digest=embedder.digest)
    except ArtifactError as exc:
        _LOG.warning("the standby imports nothing for the embedder: %s", exc)
        return ()
    return () if any(file.path == ONNX_FILE.as_posix() for file in manifest.files) else (TORCH_ENCODER,)


def _memory_bytes(pid: int) -> int:
    """What is resident of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


class StandbyKeeper:
    """Sees to it that each node has its standby, for as long as it runs."""

    def __init__(self, pinned: PinnedRelease, size: WorkerSize) -> None:
        self._release = pinned.release
        self._size = size
        self._standbys: dict[str, ActorHandle[Any]] = {}
        self._runs: dict[str, ray.ObjectRef[Any]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self._keep)
            except (RayError, ValueError, OSError) as exc:
                _LOG.warning("cannot see to the standbys: %s", exc)
            await asyncio.sleep(_KEEP_S)

    def _keep(self) -> None:
        # Where a replica could be; a head that only coordinates has neither.
        needed = platform(self._size).upper()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(needed)}
        for node in self._standbys.keys() - alive:
            del self._standbys[node], self._runs[node]
        over = {n for n, ref in self._runs.items() if ray.wait([ref], timeout=0)[0]}
        for node in (alive - self._standbys.keys()) | over:
            self._standbys[node] = self._start(node)
            self._runs[node] = self._standbys[node].run.remote()

    def _start(self, node: str) -> "ActorHandle[Any]":
        name = standby_name(node, self._release, self._size)
        variables = engine_environment(self._release, self._size)
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        options: Mapping[str, Any] = {
            "name": name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "num_cpus": 0,
            "scheduling_strategy": there,
            "runtime_env": {"env_vars": variables},
        }
        return ray.remote(Standby).options(**options).remote(name, self._release, self._size)
