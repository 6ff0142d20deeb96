"""The nodes of `loadtests.fanin`: raylets on this machine, each with a cache and actors of its own."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.metrics import MemoryRecorder

START_TIMEOUT_S = 180.0
FETCH_TIMEOUT_S = 600.0
_PLASMA_BYTES = 512 << 20


class FetchingActor:
    """A process that fetches on command, as a replica does before it opens anything."""

    def __init__(self, config: ArtifactsConfig) -> None:
        from rag_stack.serving.node_agent import cluster_peers

        self._config = config
        self._peers = cluster_peers(config)

    def fetch(self, name: str, version: str, *, with_peers: bool) -> dict[str, Any]:
        """Resolve and fetch; when it was there, after how many seconds, and the bytes by source. Keeps no pin."""
        started = time.perf_counter()
        tiers = open_tiers(self._config, MemoryRecorder(), peers=self._peers if with_peers else None)
        local = tiers.ensure_local(tiers.resolve("models", name, version))
        # The clock of all processes on this machine.
        ready_at = time.perf_counter()
        local.pin.release()
        # So that the disk is at rest before the next round; no actor waits for that in earnest.
        tiers.cache.wait_synced()
        return {"ready_at": ready_at, "seconds": ready_at - started, "moved": dict(local.moved)}

    def check(self, manifest: Manifest) -> bool:
        """Whether the node has it, by all its digests. Raises ArtifactCorruptError."""
        tiers = open_tiers(self._config, MemoryRecorder())
        tiers.cache.verify(manifest)
        return tiers.cache.find(manifest) is not None


@dataclass
class Nodes:
    """A cluster that grows. `actors` holds those of each node."""

    cluster: Cluster
    directory: Path
    config: ArtifactsConfig
    actors: list[list["ActorHandle[Any]"]] = field(default_factory=list)

    def grow(self, count: int, *, actors: int) -> None:
        """Have so many nodes, with so many idle actors each, which have imported what they need."""
        while len(self.actors) < count:
            number = len(self.actors)
            known = {node["NodeID"] for node in ray.nodes()}
            if number:
                self.cluster.add_node(**_settings(self.cache(number)))
            found = {node["NodeID"] for node in ray.nodes()}
            (node,) = found - known if number else found
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = ray.remote(FetchingActor).options(num_cpus=0, scheduling_strategy=there)
            self.actors.append([actor.remote(self.config) for _ in range(actors)])

    def warm(self, manifest: Manifest) -> None:
        """Have all actors, and all agents, do once what is measured later, with a little artifact."""
        everyone = [actor for actors in self.actors for actor in actors]
        asked = [actor.fetch.remote(manifest.name, manifest.version, with_peers=True) for actor in everyone]
        ray.get(asked, timeout=START_TIMEOUT_S)
        self.clear()

    def cache(self, number: int) -> Path:
        """A node's cache directory."""
        return self.directory / f"cache{number}"

    def clear(self) -> None:
        """Empty all caches."""
        for number in range(len(self.actors)):
            shutil.rmtree(self.cache(number), ignore_errors=True)


def fetch_at_once(
    nodes: Nodes, manifest: Manifest, *, nodes_count: int, actors: int, with_peers: bool
) -> Sequence[Mapping[str, Any]]:
    """Some actors on each of some nodes, idle until now, fetch the same artifact; what each of them answers."""
    asked = [
        actor.fetch.remote(manifest.name, manifest.version, with_peers=with_peers)
        for own in nodes.actors[:nodes_count]
        for actor in own[:actors]
    ]
    return list(ray.get(asked, timeout=FETCH_TIMEOUT_S))


def check(nodes: Nodes, manifest: Manifest, *, nodes_count: int) -> bool:
    """Whether each of some nodes has the artifact, by all its digests."""
    return all(ray.get([own[0].check.remote(manifest) for own in nodes.actors[:nodes_count]], timeout=FETCH_TIMEOUT_S))


def cpu_seconds() -> float:
    """User and system time of this process and all below it: raylets, agents, actors, the S3 server."""
    process = psutil.Process()
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def started(directory: Path, *, root: str, environment: Mapping[str, str]) -> Iterator[Nodes]:
    """A cluster of one node whose driver is this process. It and what it wrote is gone when the block ends."""
    # A directory with a short name: the path of a socket in it must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fan-", ignore_cleanup_errors=True) as ray_directory:
        # Inherited by all processes of the cluster, and taken into account by Ray wherever it looks for one.
        os.environ.update({**environment, "RAY_TMPDIR": ray_directory, "RAY_USAGE_STATS_ENABLED": "0"})
        os.environ.pop("RAY_ADDRESS", None)
        config = ArtifactsConfig(root=root, cache=directory / "cache")
        head = {**_settings(directory / "cache0"), "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield Nodes(cluster, directory, config)
        finally:
            ray.shutdown()
            cluster.shutdown()


def _settings(cache: Path) -> dict[str, Any]:
    return {"num_cpus": 1, "object_store_memory": _PLASMA_BYTES, "env_vars": {"RAG_STACK_CACHE": str(cache)}}
