"""The node-loss drill: what it takes until a new node, whose cache is empty, has all that a release serves.

    measured             how
    search_seconds       until embedder and indexes are here, opened and searched once, with the imports that this takes
    weights_seconds      until the model is here, too, and its safetensors headers are read: an engine can load it
    origin_bytes         bytes that came from the object store; 0 when neighbours have all
    peer_bytes           bytes that came from other nodes' caches
    gb_per_s             both, over the seconds of the fetches alone

Into a scratch cache that is removed afterwards: the node's own is not touched. Not in it: the start of the node, its
image, Ray and the engine. On a Ray cluster the drill runs on one of its nodes and takes from its neighbours what they
have; without one there are no neighbours, and all comes from the object store.
"""

import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rag_stack.artifacts.fetch import Source
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import LocalArtifact, Tiers, open_tiers
from rag_stack.config import Release
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import MemoryRecorder
from rag_stack.recovery.verification import Load, load_embedder, tensors
from rag_stack.serving.node_agent import cluster_peers


@dataclass(frozen=True, slots=True)
class Fetched:
    """One artifact on its way into the empty cache."""

    ref: str
    size_bytes: int
    seconds: float
    moved: Mapping[Source, int]


@dataclass(frozen=True, slots=True)
class NodeLossDrill:
    """What a drill has measured. `peers`: whether it ran on a cluster, where neighbours may have some."""

    release: str
    peers: bool
    node: str
    fetched: tuple[Fetched, ...]
    search_seconds: float
    weights_seconds: float

    @property
    def origin_bytes(self) -> int:
        """Bytes from the object store."""
        return sum(each.moved.get("object_store", 0) for each in self.fetched)

    @property
    def peer_bytes(self) -> int:
        """Bytes from other nodes."""
        return sum(each.moved.get("peer", 0) for each in self.fetched)

    @property
    def gb_per_s(self) -> float:
        """Over the fetches alone."""
        return (self.origin_bytes + self.peer_bytes) / max(sum(each.seconds for each in self.fetched), 1e-9) / 1e9

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        told = {"origin_bytes": self.origin_bytes, "peer_bytes": self.peer_bytes, "gb_per_s": round(self.gb_per_s, 3)}
        return {**asdict(self), **told}

    def figure(self) -> str:
        """The drill in one line."""
        return (
            f"lost cache of {self.release} {self._where()}: search ready after {self.search_seconds:.2f} s, weights "
            f"after {self.weights_seconds:.2f} s, {self.origin_bytes:,} bytes from the object store, "
            f"{self.peer_bytes:,} from peers, {self.gb_per_s:.2f} GB/s"
        )

    def _where(self) -> str:
        return f"on node {self.node} with its peers" if self.peers else "without peers, from the object store alone"


def drill_node_loss(
    release: Release, tiers: Tiers, *, node: str = "", peers: bool = False, load_with: Load = load_embedder
) -> NodeLossDrill:
    """Bring all that a release names into the tiers' cache, which is empty, and open it. Blocking.

    Search comes first, as in a replica's start: it answers while the weights load.
    """
    began_s, fetched = time.perf_counter(), []

    def fetch(manifest: Manifest) -> LocalArtifact:
        local = tiers.ensure_local(manifest)
        fetched.append(Fetched(str(manifest.ref), manifest.size_bytes, local.seconds, dict(local.moved)))
        return local

    with ExitStack() as held:
        embedder = fetch(tiers.resolve("models", release.embedder.name, release.embedder.version))
        encoder = load_with(embedder.path, embedder.manifest) if release.stores else None
        for manifest in _indexes(release, tiers):
            local = fetch(manifest)
            index = IndexVersion.open(local.path, manifest, embedder_digest=embedder.manifest.digest)
            held.callback(index.close)
            if encoder is not None:
                index.search(encoder.encode(["drill"]), 1)
        if release.reranker is not None:
            fetch(tiers.resolve("models", release.reranker.name, release.reranker.version))
        search_s = time.perf_counter() - began_s
        model = fetch(tiers.resolve("models", release.model.name, release.model.version))
        tensors(model.path, model.manifest)
        weights_s = time.perf_counter() - began_s
    return NodeLossDrill(release.name, peers, node, tuple(fetched), search_s, weights_s)


def fetch_here(release: Release, scratch: Path | None, *, load_with: Load = load_embedder) -> NodeLossDrill:
    """The drill on the node of a Ray cluster that this process is on. Blocking."""
    peers = cluster_peers(release.artifacts)
    with tempfile.TemporaryDirectory(prefix="rag-stack-drill-", dir=scratch) as directory:
        tiers = open_tiers(release.artifacts, MemoryRecorder(), peers=peers, cache=Path(directory))
        drill = drill_node_loss(release, tiers, node=socket.gethostname(), peers=peers is not None, load_with=load_with)
        # A thread that still brings files to the disk would find its folder gone.
        tiers.cache.wait_synced()
        return drill


def _indexes(release: Release, tiers: Tiers) -> Iterable[Manifest]:
    found = [tiers.resolve("indexes", store.index, store.version) for store in release.stores]
    return {manifest.digest: manifest for manifest in found}.values()
