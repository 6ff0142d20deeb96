"""Artifacts from node to node: a real Ray cluster of several raylets, each with a cache of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import CHUNK_BYTES, Buffer, Chunk
from rag_stack.artifacts.fetch import Origin, Source
from rag_stack.artifacts.ledger import NOTHING, NodeId
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.partial import Partial
from rag_stack.artifacts.peers import PeerPlan
from rag_stack.artifacts.tiers import LocalArtifact, Tiers, open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactError
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, MemoryRecorder
from rag_stack.serving.node_agent import LEDGER, NAMESPACE, RayCluster, agent_name, cluster_peers
from rag_stack.serving.node_fetch import NodeFetch

pytestmark = pytest.mark.long

NODES = 4
CHUNKS = 10
START_TIMEOUT_S = 120
NO_ARTIFACT = "0" * 64
CONTENT = np.random.default_rng(0).bytes(CHUNKS * CHUNK_BYTES - 7)


@dataclass(frozen=True)
class Nodes:
    """A cluster whose driver is on the first node."""

    cluster: Cluster
    directory: Path
    ids: tuple[NodeId, ...]

    def cache(self, number: int) -> Path:
        return self.directory / f"cache{number}"

    @property
    def config(self) -> ArtifactsConfig:
        return ArtifactsConfig(root=f"file://{self.directory}/store", cache=self.cache(0))

    def agent(self, number: int) -> "ActorHandle[Any]":
        """A node's agent, which some fetch has started."""
        name = agent_name(self.ids[number], str(self.config.cache))
        return ray.get_actor(name, namespace=NAMESPACE)


class Fetcher:
    """A process on some node."""

    def __init__(self, config: ArtifactsConfig) -> None:
        self._config = config

    def fetch(self, manifest: Manifest) -> Mapping[Source, int]:
        """Bytes by source; of what is here every digest has been checked."""
        tiers = open_tiers(self._config, MemoryRecorder(), peers=cluster_peers(self._config))
        local = tiers.ensure_local(manifest)
        tiers.cache.verify(manifest)
        return local.moved


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path, tuple[NodeId, ...]]]:
    directory = tmp_path_factory.mktemp("peers")
    settings: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 400 * 2**20}
    with (
        pytest.MonkeyPatch.context() as patch,
        # Not below pytest's own: a socket's path must fit into 107 bytes.
        tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as ray_directory,
    ):
        patch.setenv("RAY_TMPDIR", ray_directory)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A lost node is noticed after 2 seconds and not after 15.
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "4")
        head = {**settings, "include_dashboard": False, "env_vars": {"RAG_STACK_CACHE": str(directory / "cache0")}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            ids = [ray.get_runtime_context().get_node_id()]
            for number in range(1, NODES):
                cluster.add_node(**settings, env_vars={"RAG_STACK_CACHE": str(directory / f"cache{number}")})
                (added,) = {node["NodeID"] for node in ray.nodes()} - set(ids)
                ids.append(added)
            _start_agents(Nodes(cluster, directory, tuple(ids)))
            yield cluster, directory, tuple(ids)
        finally:
            ray.shutdown()
            cluster.shutdown()


def _start_agents(nodes: Nodes) -> None:
    """A busy machine may need longer for that than a fetch waits."""
    RayCluster(nodes.config.cache, NO_ARTIFACT).holdings(fresh=True)
    agents = [nodes.agent(number) for number in range(1, NODES)]
    assert ray.get([agent.chunks.remote(NO_ARTIFACT) for agent in agents], timeout=START_TIMEOUT_S) == [0] * len(agents)


@pytest.fixture
def nodes(cluster: tuple[Cluster, Path, tuple[NodeId, ...]]) -> Nodes:
    return Nodes(*cluster)


@pytest.fixture
def manifest(nodes: Nodes, tmp_path: Path, request: pytest.FixtureRequest) -> Manifest:
    """An artifact that no other test has."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "w.bin").write_bytes(CONTENT)
    (source / "empty.json").write_bytes(b"")
    name = request.node.name.replace("[", "-").replace("]", "")
    return Catalog(open_store(nodes.config.root)).publish(source, kind="models", name=name, metadata={})


def process_of(actor: "ActorHandle[Any]") -> int:
    """An actor's process; waits for one that restarts."""
    return int(ray.get(actor.__ray_call__.options(max_task_retries=-1).remote(lambda _: os.getpid()), timeout=60))


def fetcher(nodes: Nodes, number: int) -> "ActorHandle[Any]":
    there = NodeAffinitySchedulingStrategy(nodes.ids[number], soft=False)
    return ray.remote(Fetcher).options(num_cpus=0, scheduling_strategy=there).remote(nodes.config)


def give(nodes: Nodes, manifest: Manifest, number: int, indices: range = range(CHUNKS)) -> None:
    """Have a node hold an artifact, or some chunks of it, as of old."""

    def fill(to: Partial) -> None:
        for index in indices:
            chunk = to.chunks[index]
            to.write(chunk, CONTENT[chunk.offset : chunk.offset + chunk.size_bytes])
        if len(indices) < CHUNKS:
            raise ArtifactError("broke off")

    try:
        NodeCache(nodes.cache(number)).insert(manifest, fill)
    except ArtifactError as exc:
        assert str(exc) == "broke off"  # noqa: PT017 - only some are given


class WatchedCluster(RayCluster):
    """Calls back once, before the first read from a certain node."""

    node_watched: NodeId
    on_read: Callable[[], None]
    reads: list[NodeId]
    lock: threading.Lock

    def read(self, node: NodeId, chunk: Chunk) -> Buffer:
        with self.lock:
            if node == self.node_watched and node not in self.reads:
                self.on_read()
            self.reads.append(node)
        return super().read(node, chunk)


@dataclass
class WatchedPeers:
    """The driver's peers, with a callback before the first read from one of them."""

    nodes: Nodes
    number: int
    on_read: Callable[[], None]
    read_timeout_s: float = 30.0
    reads: list[NodeId] = field(default_factory=list)

    def plan(self, partial: Partial, origin: Origin) -> PeerPlan:
        cache = self.nodes.config.cache
        cluster = WatchedCluster(cache, partial.manifest.hex, read_timeout_s=self.read_timeout_s)
        cluster.node_watched, cluster.on_read = self.nodes.ids[self.number], self.on_read
        cluster.reads, cluster.lock = self.reads, threading.Lock()
        return PeerPlan(partial, origin, cluster)

    def tiers(self) -> Tiers:
        config = self.nodes.config
        return Tiers(Catalog(open_store(config.root)), NodeCache(config.cache), MemoryRecorder(), peers=self)


def right(local: LocalArtifact) -> LocalArtifact:
    assert (local.path / "w.bin").read_bytes() == CONTENT
    assert (local.path / "empty.json").read_bytes() == b""
    return local


def test_without_ray_there_are_no_peers(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert cluster_peers(nodes.config) is None


def test_four_nodes_at_once_read_the_origin_once(nodes: Nodes, manifest: Manifest) -> None:
    fetchers = [fetcher(nodes, number) for number in range(NODES)]
    moved = ray.get([fetcher.fetch.remote(manifest) for fetcher in fetchers], timeout=120)
    assert sum(sources.get("object_store", 0) for sources in moved) == len(CONTENT)
    assert sum(sources.get("peer", 0) for sources in moved) == (NODES - 1) * len(CONTENT)


def test_a_node_that_has_it_gives_it_when_the_origin_is_gone(nodes: Nodes, manifest: Manifest) -> None:
    give(nodes, manifest, 1)
    (nodes.directory / "store" / str(manifest.ref) / "w.bin").unlink()
    recorder = MemoryRecorder()
    tiers = open_tiers(nodes.config, recorder, peers=cluster_peers(nodes.config))
    assert right(tiers.ensure_local(manifest)).moved == {"peer": len(CONTENT)}
    labels = {"kind": "models", "stage": "fetch", "source": "peer"}
    assert recorder.values(ARTIFACT_LOAD_BYTES, labels) == [len(CONTENT)]


def test_a_node_with_a_part_gives_that_part(nodes: Nodes, manifest: Manifest) -> None:
    give(nodes, manifest, 2, range(3, 7))
    moved = ray.get(fetcher(nodes, 3).fetch.remote(manifest), timeout=60)
    assert moved == {"peer": 4 * CHUNK_BYTES, "object_store": len(CONTENT) - 4 * CHUNK_BYTES}


def test_a_source_that_is_killed_midway_is_replaced_and_comes_back(
    nodes: Nodes, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        give(nodes, manifest, number)
    agent = process_of(nodes.agent(1))
    peers = WatchedPeers(nodes, 1, lambda: os.kill(agent, signal.SIGKILL))
    assert right(peers.tiers().ensure_local(manifest)).moved == {"peer": len(CONTENT)}
    assert nodes.ids[2] in peers.reads
    assert f"not from node {nodes.ids[1]}" in caplog.text
    assert process_of(nodes.agent(1)) != agent


def test_a_source_that_stalls_midway_is_replaced(
    nodes: Nodes, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        give(nodes, manifest, number)
    agent = process_of(nodes.agent(1))
    peers = WatchedPeers(nodes, 1, lambda: os.kill(agent, signal.SIGSTOP), read_timeout_s=5)
    try:
        assert right(peers.tiers().ensure_local(manifest)).moved["peer"] > 0
    finally:
        os.kill(agent, signal.SIGCONT)
    assert nodes.ids[2] in peers.reads
    assert f"not from node {nodes.ids[1]}" in caplog.text
    assert process_of(nodes.agent(1)) == agent


def test_damaged_bytes_are_not_taken(nodes: Nodes, manifest: Manifest) -> None:
    give(nodes, manifest, 1)
    path = nodes.cache(1) / "artifacts" / manifest.hex / "w.bin"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(b"damaged")
    tiers = open_tiers(nodes.config, MemoryRecorder(), peers=cluster_peers(nodes.config))
    assert right(tiers.ensure_local(manifest)).moved["object_store"] >= CHUNK_BYTES


def test_the_ledger_is_killed_midway(nodes: Nodes, manifest: Manifest) -> None:
    give(nodes, manifest, 1)
    # So that there is one, where no other test has run before.
    RayCluster(nodes.config.cache, manifest.hex).leave("nobody", NOTHING)
    ledger = process_of(ray.get_actor(LEDGER, namespace=NAMESPACE))
    tiers = WatchedPeers(nodes, 1, lambda: os.kill(ledger, signal.SIGKILL)).tiers()
    assert right(tiers.ensure_local(manifest)).moved == {"peer": len(CONTENT)}
    assert process_of(ray.get_actor(LEDGER, namespace=NAMESPACE)) != ledger


def test_a_fetch_that_outlasts_ray_goes_on_alone(nodes: Nodes, manifest: Manifest) -> None:
    """And starts no cluster of its own, as Ray's functions do where there is none."""
    give(nodes, manifest, 1)
    command = [sys.executable, str(Path(__file__).parent / "outlast_ray.py"), nodes.cluster.address]
    # A cache of its own, so that nothing is there yet.
    environment = {**os.environ, "RAG_STACK_CACHE": str(nodes.directory / "other")}
    arguments = [nodes.config.root, str(nodes.config.cache), manifest.name, manifest.version]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    moved = json.loads(done.stdout.splitlines()[-1])
    assert moved == {"peer": 0, "object_store": len(CONTENT)}
    assert "Ray was shut down" in done.stderr


def test_a_node_is_lost_midway(nodes: Nodes, manifest: Manifest) -> None:
    """The last test here: it takes a node away."""
    for number in (1, NODES - 1):
        give(nodes, manifest, number)
    (last,) = [node for node in nodes.cluster.list_all_nodes() if node.node_id == nodes.ids[-1]]
    remove = partial(nodes.cluster.remove_node, last, allow_graceful=False)
    peers = WatchedPeers(nodes, NODES - 1, remove, read_timeout_s=10)
    assert right(peers.tiers().ensure_local(manifest)).moved == {"peer": len(CONTENT)}
    assert nodes.ids[-1] in peers.reads


def test_a_process_of_its_own_that_gives_way_fetches_for_those_who_serve(nodes: Nodes, manifest: Manifest) -> None:
    fetch_beside = NodeFetch(nodes.config)
    fetch_beside(manifest)
    cache = NodeCache(nodes.cache(0))
    assert cache.find(manifest) is not None
    cache.verify(manifest)
    actor = fetch_beside._fetcher()
    pid = process_of(actor)
    assert pid != os.getpid()
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    # It lives on for the next one, and restarts when it was killed.
    os.kill(pid, signal.SIGKILL)
    assert process_of(actor) != pid


def test_what_the_fetcher_cannot_bring_is_left_to_who_asked(
    nodes: Nodes, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    Path(f"{nodes.directory}/store/{manifest.ref}/w.bin").unlink()
    NodeFetch(nodes.config)(manifest)
    assert NodeCache(nodes.cache(0)).find(manifest) is None
    assert f"fetching {manifest.ref} in this process" in caplog.text
