"""Fetches that share what they have: real caches and fetches, many nodes in one process, no Ray."""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import Buffer, Chunk, digest
from rag_stack.artifacts.fetch import Origin, fetch
from rag_stack.artifacts.ledger import Chunks, Ledger, NodeId, Progress, Reply, Session
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.offer import Offer
from rag_stack.artifacts.partial import Partial
from rag_stack.artifacts.peers import PeerPlan
from rag_stack.artifacts.tiers import LocalArtifact, Tiers
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError
from rag_stack.metrics import MemoryRecorder

COUNT = 48
CHUNK_BYTES = 64 * 1024
CONTENT = np.random.default_rng(0).bytes(COUNT * CHUNK_BYTES - 5)
OnRead = Callable[[NodeId, Chunk], None]


@dataclass
class Network:
    """Nodes in one process; `reads` are the chunks that went from node to node."""

    directory: Path
    catalog: Catalog
    ledger: Ledger = field(default_factory=Ledger)
    reachable: bool = True
    nodes: set[NodeId] = field(default_factory=set)
    reads: list[tuple[NodeId, int]] = field(default_factory=list)
    on_read: OnRead | None = None
    answers: Mapping[NodeId, Chunks] | None = None
    on_asked: Callable[[], None] | None = None
    on_join: Callable[[], None] | None = None
    progress: threading.Condition = field(default_factory=threading.Condition)
    joined: threading.Event = field(default_factory=threading.Event)

    def tiers(self, node: NodeId) -> Tiers:
        self.nodes.add(node)
        cache = NodeCache(self.directory / node)
        return Tiers(self.catalog, cache, MemoryRecorder(), peers=OnNode(node, self))


@dataclass
class OnNode:
    """One node's view of the network: the tier and its cluster."""

    node: NodeId
    network: Network
    artifact: str = ""

    def plan(self, partial: Partial, origin: Origin) -> PeerPlan:
        cluster = OnNode(self.node, self.network, partial.manifest.hex)
        return PeerPlan(partial, origin, cluster, heartbeat_s=0.02)

    def has_others(self) -> bool:
        return self.network.nodes > {self.node}

    def holdings(self, *, fresh: bool) -> Mapping[NodeId, Chunks]:
        if self.network.on_asked is not None:
            self.network.on_asked()
        others = self.network.nodes - {self.node} if fresh else set()
        if self.network.answers is not None:
            return self.network.answers
        return {node: Offer(self.network.directory / node).chunks(self.artifact) for node in others}

    def join(
        self,
        session: Session,
        *,
        have: Chunks,
        reading: Mapping[int, NodeId | None],
        bad_sources: Iterable[NodeId],
        holdings: Mapping[NodeId, Chunks] | None,
    ) -> None:
        if self.network.on_join is not None:
            self.network.on_join()
        with self._ledger() as ledger:
            ledger.join(session, have=have, reading=reading, bad_sources=bad_sources, holdings=holdings)
        if holdings is not None:
            self.network.joined.set()

    def hold(self, session_id: str, holdings: Mapping[NodeId, Chunks]) -> None:
        with self._ledger() as ledger:
            ledger.hold(session_id, holdings)

    def next(self, session_id: str, progress: Progress) -> Reply:
        with self._ledger() as ledger:
            reply = ledger.next(session_id, progress)
            if reply == "wait":
                self.network.progress.wait(0.2)
            return reply

    def leave(self, session_id: str, progress: Progress) -> None:
        with self._ledger() as ledger:
            ledger.leave(session_id, progress)

    def read(self, node: NodeId, chunk: Chunk) -> Buffer:
        self.network.reads.append((node, chunk.index))
        if self.network.on_read is not None:
            self.network.on_read(node, chunk)
        buffer = bytearray(chunk.size_bytes)
        Offer(self.network.directory / node).read_into(self.artifact, chunk, memoryview(buffer))
        return buffer

    def _ledger(self) -> "_Reached":
        return _Reached(self.network)


@dataclass
class _Reached:
    network: Network

    def __enter__(self) -> Ledger:
        if not self.network.reachable:
            raise ArtifactError("cannot reach the ledger")
        self.network.progress.acquire()
        return self.network.ledger

    def __exit__(self, *_: object) -> None:
        self.network.progress.notify_all()
        self.network.progress.release()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """An artifact in many small chunks; what is published has larger ones."""
    digests = tuple(digest(CONTENT[first : first + CHUNK_BYTES]) for first in range(0, len(CONTENT), CHUNK_BYTES))
    entry = FileEntry("w.bin", len(CONTENT), digests)
    manifest = Manifest(kind="models", name="m", version="v", files=(entry,), metadata={}, chunk_bytes=CHUNK_BYTES)
    path = tmp_path / "store" / str(manifest.ref) / "w.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return manifest


@pytest.fixture
def network(tmp_path: Path, catalog: Catalog, manifest: Manifest) -> Network:
    return Network(tmp_path / "nodes", catalog)


def right(local: LocalArtifact) -> LocalArtifact:
    assert (local.path / "w.bin").read_bytes() == CONTENT
    return local


def test_all_nodes_at_once_read_the_origin_once(network: Network, manifest: Manifest) -> None:
    all_tiers = [network.tiers(f"n{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = [right(local) for local in pool.map(lambda tiers: tiers.ensure_local(manifest), all_tiers)]
    assert sum(local.moved.get("object_store", 0) for local in found) == len(CONTENT)
    assert sum(local.moved.get("peer", 0) for local in found) == 3 * len(CONTENT)


def test_a_node_that_has_it_gives_it_all(network: Network, manifest: Manifest, tmp_path: Path) -> None:
    network.tiers("n0").ensure_local(manifest)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    local = right(network.tiers("n1").ensure_local(manifest))
    assert (local.source, local.moved) == ("peer", {"peer": len(CONTENT)})


def test_what_another_node_gets_while_it_answers_is_known(network: Network, manifest: Manifest) -> None:
    """Whoever is asked too early answers that it has nothing; the ledger knows better."""
    first, second = network.tiers("n0"), network.tiers("n1")

    def end_the_other() -> None:
        network.on_asked = None
        with ThreadPoolExecutor(1) as pool:
            pool.submit(first.ensure_local, manifest).result(60)

    network.on_asked = end_the_other
    network.answers = {}
    assert right(second.ensure_local(manifest)).moved == {"peer": len(CONTENT)}


def test_a_node_alone_reads_the_origin_and_asks_nobody(network: Network, manifest: Manifest) -> None:
    network.reachable = False
    assert right(network.tiers("n0").ensure_local(manifest)).source == "object_store"


def test_an_unreachable_ledger_is_told_and_the_origin_read(
    network: Network, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    network.tiers("n0")
    network.reachable = False
    assert right(network.tiers("n1").ensure_local(manifest)).moved == {"object_store": len(CONTENT)}
    assert [record.message for record in caplog.records if "comes from the object store" in record.message]


def give_partly(network: Network, manifest: Manifest, node: NodeId, indices: Iterable[int]) -> None:
    """A fetch that broke off."""
    tiers = network.tiers(node)

    def fill(partial: Partial) -> None:
        for index in indices:
            chunk = partial.chunks[index]
            partial.write(chunk, CONTENT[chunk.offset : chunk.offset + chunk.size_bytes])
        raise ArtifactError("broke off")

    with pytest.raises(ArtifactError, match="broke off"):
        tiers.cache.insert(manifest, fill)


def test_a_node_with_a_part_gives_that_part(network: Network, manifest: Manifest) -> None:
    give_partly(network, manifest, "n0", [1, 4, 5])
    right(network.tiers("n1").ensure_local(manifest))
    assert sorted(network.reads) == [("n0", 1), ("n0", 4), ("n0", 5)]


def test_what_a_broken_fetch_left_is_not_fetched_again(network: Network, manifest: Manifest) -> None:
    network.tiers("n0").ensure_local(manifest)
    give_partly(network, manifest, "n1", range(COUNT - 2))
    right(network.tiers("n1").ensure_local(manifest))
    assert sorted(network.reads) == [("n0", COUNT - 2), ("n0", COUNT - 1)]


@pytest.mark.parametrize("error", [ArtifactError("silent"), ArtifactNotFoundError("evicted")])
def test_a_source_that_is_lost_midway_is_replaced(
    network: Network, manifest: Manifest, error: ArtifactError, caplog: pytest.LogCaptureFixture
) -> None:
    for node in ("n0", "n1"):
        network.tiers(node).ensure_local(manifest)
    network.reads.clear()

    def fail(node: NodeId, _: Chunk) -> None:
        if node == "n0" and len(network.reads) > 3:
            raise error

    network.on_read = fail
    assert right(network.tiers("n2").ensure_local(manifest)).moved == {"peer": len(CONTENT)}
    assert "not from node n0" in caplog.text


def test_damaged_bytes_are_never_taken_and_the_source_replaced(network: Network, manifest: Manifest) -> None:
    local = network.tiers("n0").ensure_local(manifest)
    (local.path / "w.bin").chmod(0o644)
    with (local.path / "w.bin").open("r+b") as file:
        file.write(b"damaged")
    right(network.tiers("n1").ensure_local(manifest))
    assert ("n0", 0) in network.reads


def test_a_ledger_that_is_lost_midway_is_told_all_again(network: Network, manifest: Manifest) -> None:
    network.tiers("n0").ensure_local(manifest)
    lost = threading.Event()

    def lose(_: NodeId, chunk: Chunk) -> None:
        with network.progress:
            if len(network.reads) > 4 and not lost.is_set():
                lost.set()
                network.ledger = Ledger()

    network.on_read = lose
    assert right(network.tiers("n1").ensure_local(manifest)).moved == {"peer": len(CONTENT)}
    assert lost.is_set()


def test_a_ledger_that_does_not_answer_keeps_no_fetch_waiting(network: Network, manifest: Manifest) -> None:
    """One that restarts for ever: whoever tries to join again hangs, and the fetch goes on without."""
    network.tiers("n0").ensure_local(manifest)
    tries, end = threading.Event(), threading.Event()
    ends: list[bool] = []

    def lose(_: NodeId, __: Chunk) -> None:
        network.reachable = False

    def hang() -> None:
        if not network.reachable:
            tries.set()
            ends.append(end.wait(30))

    network.on_read, network.on_join = lose, hang
    origin = WaitingOrigin(network.catalog.store, manifest, tries)
    tiers = network.tiers("n1")

    def fill(partial: Partial) -> None:
        moved = fetch(partial, OnNode("n1", network).plan(partial, origin))
        assert moved["peer"] > 0
        assert moved["object_store"] > 0

    try:
        assert (tiers.cache.insert(manifest, fill) / "w.bin").read_bytes() == CONTENT
        assert not ends, "the fetch waited for the ledger"
    finally:
        end.set()


def test_an_answer_of_the_ledger_that_is_lost_is_noticed(network: Network, manifest: Manifest) -> None:
    """As after a question that Ray sent twice: the ledger believes that a chunk is on its way."""
    network.tiers("n0").ensure_local(manifest)

    def lose(_: NodeId, chunk: Chunk) -> None:
        with network.progress:
            if len(network.reads) == 2:
                (fetcher,) = network.ledger._fetchers
                network.ledger.next(fetcher, Progress())

    network.on_read = lose
    assert right(network.tiers("n1").ensure_local(manifest)).moved == {"peer": len(CONTENT)}


def test_a_damaged_origin_ends_the_fetch_of_every_node(
    network: Network, manifest: Manifest, tmp_path: Path, store: ObjectStore
) -> None:
    path = tmp_path / "store" / str(manifest.ref) / "w.bin"
    path.write_bytes(b"damaged" + CONTENT[7:])
    all_tiers = [network.tiers(f"n{number}") for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(tiers.ensure_local, manifest) for tiers in all_tiers]
        for end in ends:
            with pytest.raises(ArtifactCorruptError, match=r"w\.bin"):
                end.result(60)
    assert not network.ledger._fetchers


class WaitingOrigin(Origin):
    """Gives nothing until something has happened."""

    def __init__(self, store: ObjectStore, manifest: Manifest, event: threading.Event) -> None:
        super().__init__(store, manifest)
        self._event = event

    def read(self, chunk: Chunk) -> Buffer:
        assert self._event.wait(30), "it did not happen"
        return super().read(chunk)


def test_peers_that_appear_midway_are_used(network: Network, manifest: Manifest, store: ObjectStore) -> None:
    """A fetch that began alone joins as soon as there is another node; what it has not yet read comes from there."""
    network.tiers("n0").ensure_local(manifest)
    network.nodes.clear()
    tiers = network.tiers("n1")
    origin = WaitingOrigin(store, manifest, network.joined)
    network.joined.clear()

    def fill(partial: Partial) -> None:
        plan = OnNode("n1", network).plan(partial, origin)
        network.nodes.add("n0")
        moved = fetch(partial, plan)
        assert moved["peer"] > moved["object_store"] > 0

    assert (tiers.cache.insert(manifest, fill) / "w.bin").read_bytes() == CONTENT
