"""Artifacts from node to node through Ray's object store: an agent on every node, one ledger a cluster.

Both are detached actors without CPUs of their own, made by the first fetch that needs them. They stay until the
cluster ends, for the next fetch of whatever job, and hold nothing that they cannot do without: an agent reads its
node's cache, the ledger is told all again when it restarts. Nothing heavy is imported here.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rag_stack.artifacts.chunk import Buffer, Chunk
from rag_stack.artifacts.fetch import Origin
from rag_stack.artifacts.ledger import (
    READS_PER_SOURCE,
    Chunks,
    NodeId,
    Progress,
    Reply,
    Session,
    UnknownSessionError,
)
from rag_stack.artifacts.offer import Offer
from rag_stack.artifacts.partial import Partial
from rag_stack.artifacts.peers import PeerPlan
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactError, ArtifactNotFoundError
from rag_stack.serving.ledger_actor import LedgerActor

# A new version of what the actors take and answer needs a new name: they outlive the program that made them.
NAMESPACE: Final = "rag_stack.peers.1"
LEDGER: Final = "ledger"
# A node that has not started its agent by then is left out until it has.
AGENT_START_S: Final = 10.0
# The ledger answers within milliseconds, or within the time it takes to restart.
LEDGER_TIMEOUT_S: Final = 20.0
# A chunk takes milliseconds; a source that needs so long is replaced.
READ_TIMEOUT_S: Final = 30.0
# A resource that only the head node has.
_HEAD: Final = "node:__internal_head__"
_DETACHED: Final = {
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "get_if_exists": True,
    "num_cpus": 0,
    "max_restarts": -1,
}


class NodeAgent:
    """Gives what is in its node's cache, which is where RAG_STACK_CACHE says if that is set on the node."""

    def __init__(self, cache: str) -> None:
        self._offer = Offer(Path(os.environ.get("RAG_STACK_CACHE") or cache))

    def chunks(self, artifact: str) -> Chunks:
        """See Offer.chunks."""
        return self._offer.chunks(artifact)

    def read(self, artifact: str, chunk: Chunk) -> NDArray[np.uint8] | None:
        """A chunk's bytes, which the receiver maps and verifies; None when it is not here."""
        data = np.empty(chunk.size_bytes, np.uint8)
        try:
            self._offer.read_into(artifact, chunk, data.data)
        except ArtifactNotFoundError:
            return None
        return data


class RayCluster:
    """The Ray cluster as the fetch of one artifact sees it (`artifacts.peers.Cluster`)."""

    def __init__(self, cache: Path, artifact: str, *, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self.node: NodeId = ray.get_runtime_context().get_node_id()
        self._cache = str(cache)
        self._artifact = artifact
        self._read_timeout_s = read_timeout_s
        self._log = logging.getLogger(__name__)
        self._agents: dict[NodeId, ActorHandle[Any]] = {}
        self._ledger: ActorHandle[Any] | None = None
        self._asked: dict[NodeId, ray.ObjectRef[Any] | None] = {}
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def has_others(self) -> bool:
        """Whether there is any other node now."""
        return bool(self._others())

    def holdings(self, *, fresh: bool) -> Mapping[NodeId, Chunks]:
        """What the other nodes have of the artifact: asked anew, or those that answered or appeared since."""
        with self._asking:
            if fresh:
                self._asked.clear()
            for node in self._others() - self._asked.keys():
                with _translated(f"ask node {node}"):
                    self._asked[node] = self._agent(node).chunks.remote(self._artifact)
            waiting = {ref: node for node, ref in self._asked.items() if ref is not None}
            if not waiting:
                return {}
            with _translated("ask the nodes"):
                answered, silent = ray.wait(
                    list(waiting), num_returns=len(waiting), timeout=AGENT_START_S if fresh else 0
                )
            if fresh and silent:
                names = ", ".join(waiting[ref] for ref in silent)
                self._log.warning("left out until they answer: nodes %s, silent for %.0f s", names, AGENT_START_S)
            self._asked.update({waiting[ref]: None for ref in answered})
        found = {waiting[ref]: self._answer(waiting[ref], ref) for ref in answered}
        return {node: chunks for node, chunks in found.items() if chunks}

    def join(
        self,
        session: Session,
        *,
        have: Chunks,
        reading: Mapping[int, NodeId | None],
        bad_sources: Iterable[NodeId],
        holdings: Mapping[NodeId, Chunks] | None,
    ) -> None:
        """See Ledger.join."""
        self._ledger = None
        others = {"reading": dict(reading), "bad_sources": tuple(bad_sources), "holdings": holdings}
        self._ask("join", session, have, **others)

    def hold(self, session_id: str, holdings: Mapping[NodeId, Chunks]) -> None:
        """See Ledger.hold."""
        if not self._ask("hold", session_id, dict(holdings)):
            raise UnknownSessionError(session_id)

    def next(self, session_id: str, progress: Progress) -> Reply:
        """See Ledger.next."""
        reply: Reply | bool = self._ask("next", session_id, progress)
        if isinstance(reply, bool):
            raise UnknownSessionError(session_id)
        return reply

    def leave(self, session_id: str, progress: Progress) -> None:
        """See Ledger.leave. Not waited for: a ledger that does not hear of it notices by itself."""
        with _translated("reach the ledger"):
            self._reach().leave.remote(session_id, progress)

    def read(self, node: NodeId, chunk: Chunk) -> Buffer:
        """A chunk from a node, as a view of the object store's memory."""
        with _translated(f"read from node {node}"):
            data = ray.get(self._agent(node).read.remote(self._artifact, chunk), timeout=self._read_timeout_s)
        if data is None:
            raise ArtifactNotFoundError(f"node {node} has chunk {chunk.index} of {self._artifact} no more")
        return memoryview(data)

    def _others(self) -> set[NodeId]:
        with _translated("list the nodes"):
            return {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {self.node}

    def _answer(self, node: NodeId, ref: "ray.ObjectRef[Any]") -> Chunks:
        try:
            with _translated(f"ask node {node}"):
                return int(ray.get(ref))
        except ArtifactError as exc:
            self._log.warning("%s", exc)
            return 0

    def _ask(self, method: str, *arguments: object, **named: object) -> Any:  # noqa: ANN401 - each answers its own
        with _translated("reach the ledger"):
            asked = getattr(self._reach(), method).remote(*arguments, **named)
            return ray.get(asked, timeout=LEDGER_TIMEOUT_S)

    def _reach(self) -> "ActorHandle[Any]":
        ledger = self._ledger
        if ledger is None:
            # Beside Ray's own control, which the cluster does not survive either; so it outlives all other nodes.
            heads = [node["NodeID"] for node in ray.nodes() if _HEAD in node["Resources"]]
            there = NodeAffinitySchedulingStrategy((heads or [self.node])[0], soft=True)
            # Retried where it restarts meanwhile; so many questions because it keeps them open.
            options = {**_DETACHED, "max_task_retries": -1, "max_concurrency": 10_000, "scheduling_strategy": there}
            ledger = self._ledger = ray.remote(LedgerActor).options(name=LEDGER, **options).remote()
        return ledger

    def _agent(self, node: NodeId) -> "ActorHandle[Any]":
        with self._lock:
            if node not in self._agents:
                options = {
                    **_DETACHED,
                    "max_concurrency": READS_PER_SOURCE,
                    "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
                }
                name = agent_name(node, self._cache)
                self._agents[node] = ray.remote(NodeAgent).options(name=name, **options).remote(self._cache)
            return self._agents[node]


class RayPeers:
    """The peers tier of a process that runs in a Ray cluster (`artifacts.tiers.Peers`)."""

    def __init__(self, cache: Path, *, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self._cache = cache
        self._read_timeout_s = read_timeout_s

    def plan(self, partial: Partial, origin: Origin) -> PeerPlan:
        """How to get what is missing, together with the nodes that have it or fetch it too."""
        cluster = RayCluster(self._cache, partial.manifest.hex, read_timeout_s=self._read_timeout_s)
        return PeerPlan(partial, origin, cluster)


def cluster_peers(config: ArtifactsConfig, *, read_timeout_s: float = READ_TIMEOUT_S) -> RayPeers | None:
    """The peers of this process, or None when it is on no node of a Ray cluster. `config` is the same on all nodes.

    A fetch goes on alone when Ray was shut down meanwhile; but Ray itself may never answer what another thread asks in
    the very moment of its shutdown.
    """
    if not ray.is_initialized() or ray.util.client.ray.is_connected():
        return None
    return RayPeers(config.cache.absolute(), read_timeout_s=read_timeout_s)


def agent_name(node: NodeId, cache: str) -> str:
    """The actor's name of a node's agent: releases that keep their caches in different places have one each."""
    return f"agent-{node}-{hashlib.sha256(cache.encode()).hexdigest()[:8]}"


@contextmanager
def _translated(action: str) -> Iterator[None]:
    if not ray.is_initialized():
        # A question would start a cluster of this process's own.
        raise ArtifactError(f"cannot {action}: Ray was shut down in this process")
    try:
        yield
    except GetTimeoutError as exc:
        raise ArtifactError(f"cannot {action}: no answer in time; check that node's load and network") from exc
    except (RayError, ValueError, OSError) as exc:
        raise ArtifactError(f"cannot {action}: {exc}; see that node's logs") from exc
