"""Processes that follow a coordinator, in one event loop: real shelves, a real object store, no Ray."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.errors import ArtifactNotFoundError, NotFoundError
from rag_stack.index.documents import Document
from rag_stack.metrics import SWAP_LAGGING, SWAPS, MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.retrieval.preparation import Preparation
from rag_stack.retrieval.rollout import Coordinator, FollowedStore, Orders, Report, Target
from rag_stack.retrieval.shelf import Shelf
from rag_stack.serving.following.coordinator import Rollouts
from rag_stack.serving.following.follow import Follower
from rag_stack.serving.holding import Holding
from tests.embedder import WordEmbedder
from tests.layer import TOWN, publish_index

WAIT_S = 30.0
EMBEDDER = WordEmbedder()
STORE = FollowedStore("town", "town", of_release=True)


@dataclass
class Cluster:
    """A coordinator, which may be away, and processes that search."""

    tiers: Tiers
    folder: Path
    stack: contextlib.AsyncExitStack
    limit_s: float = 60.0
    rollouts: Rollouts | None = None
    followers: list[Follower] = field(default_factory=list)
    recorders: list[MemoryRecorder] = field(default_factory=list)
    shelves: list[Shelf] = field(default_factory=list)
    held: frozenset[ArtifactRef] = frozenset()
    _running: asyncio.Task[None] | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def sync(self, participant: str, report: Report, known: Orders | None) -> Orders | None:
        async with self._changed:
            self._changed.notify_all()
        return await self.rollouts.sync(participant, report, known) if self.rollouts else None

    def coordinate(self, *stores: FollowedStore) -> Rollouts:
        """Start a coordinator that knows nothing."""

        async def hold(mapped: frozenset[ArtifactRef]) -> None:
            self.held = mapped

        loop = asyncio.get_running_loop()
        at = Coordinator(stores, now_s=loop.time(), limit_s=self.limit_s, max_stores=3, grace_s=0.2)
        self.rollouts = Rollouts(at, self.tiers.catalog, poll_s=0.05, hold=hold, clock=loop.time)
        self._running = asyncio.create_task(self.rollouts.run())
        self.stack.push_async_callback(_cancelled, self._running)
        return self.rollouts

    async def away(self) -> None:
        """The coordinator ends."""
        self.rollouts = None
        assert self._running is not None
        await _cancelled(self._running)

    async def start(self, name: str, *, tiers: Tiers | None = None, serving: Mapping[FollowedStore, Target]) -> Shelf:
        """One more process that searches."""
        recorder = MemoryRecorder()
        shelf = Shelf(Preparation(tiers or self.tiers, recorder, embedder_digest=EMBEDDER.digest), max_stores=2)
        self.stack.callback(shelf.wait_unmapped, WAIT_S)
        follower = Follower(name, shelf, tiers or self.tiers, serving=serving, sync=self.sync, recorder=recorder)
        assert await follower.join(timeout_s=WAIT_S) == (self.rollouts is not None)
        self.stack.push_async_callback(_cancelled, asyncio.create_task(follower.run()))
        self.followers.append(follower)
        self.recorders.append(recorder)
        self.shelves.append(shelf)
        return shelf

    def publish(self, text: str, **changes: str) -> Manifest:
        """A version in which every passage begins with a text."""
        documents = [Document(f"{d.document_id}", f"{text}: {d.text}", d.title, d.uri) for d in TOWN]
        return publish_index(
            self.tiers.catalog, self.folder / text, documents, embedder=EMBEDDER, name="town", **changes
        )

    def promote(self, text: str, **changes: str) -> Manifest:
        manifest = self.publish(text, **changes)
        self.tiers.catalog.promote(manifest.ref)
        return manifest

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the processes do; each of their reports lets us look again."""
        async with asyncio.timeout(WAIT_S), self._changed:
            while not condition():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.5)

    def versions(self) -> set[str]:
        return {shelf.state()["town"].version for shelf in self.shelves}


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    async with contextlib.AsyncExitStack() as stack:
        yield Cluster(tiers, tmp_path / "built", stack)


async def test_what_is_promoted_is_served_by_all_and_a_rollback_too(cluster: Cluster) -> None:
    first = cluster.promote("first")
    rollouts = cluster.coordinate(STORE)
    for name in ("one", "two"):
        await cluster.start(name, serving={STORE: Target()})
    assert (await rollouts.settle("town", first.version, timeout_s=WAIT_S)).lagging == ()
    assert cluster.versions() == {first.version}
    second = cluster.promote("second")
    settled = await rollouts.settle("town", second.version, timeout_s=WAIT_S)
    assert (settled.version, settled.lagging) == (second.version, ())
    assert cluster.versions() == {second.version}
    cluster.tiers.catalog.promote(first.ref)
    await cluster.until(lambda: cluster.versions() == {first.version})
    assert cluster.recorders[0].values(SWAPS, {"outcome": "flipped"}) == [1, 1, 1]
    assert cluster.recorders[0].values(SWAP_LAGGING, {"store": "town"})[-1] == 0
    assert ArtifactRef("indexes", "town", first.version) in cluster.held


async def test_a_process_that_starts_later_begins_with_what_is_wanted(cluster: Cluster) -> None:
    first = cluster.promote("first")
    rollouts = cluster.coordinate(STORE)
    await cluster.start("one", serving={STORE: Target()})
    await rollouts.settle("town", first.version, timeout_s=WAIT_S)
    second = cluster.promote("second")
    await rollouts.settle("town", second.version, timeout_s=WAIT_S)
    late = await cluster.start("late", serving={STORE: Target(version=first.version, digest=first.digest)})
    assert late.state()["town"].version == second.version, "before it is ready"


async def test_one_that_cannot_prepare_keeps_what_it_serves_and_says_why(cluster: Cluster, tmp_path: Path) -> None:
    cluster.limit_s = 1.0
    first = cluster.promote("first")
    rollouts = cluster.coordinate(STORE)
    await cluster.start("able", serving={STORE: Target()})
    other = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/copy", cache=tmp_path / "other"), MemoryRecorder())
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    await cluster.start("unable", tiers=other, serving={STORE: Target()})
    await rollouts.settle("town", first.version, timeout_s=WAIT_S)
    second = cluster.promote("second")
    settled = await rollouts.settle("town", second.version, timeout_s=WAIT_S)
    assert settled.lagging == ("unable",)
    assert [shelf.state()["town"].version for shelf in cluster.shelves] == [second.version, first.version]
    assert second.version in cluster.followers[1].lagging()["town"]
    (view,) = rollouts.views()
    assert [(lag.participant, lag.serving) for lag in view.lagging] == [("unable", first.version)]
    assert "no artifact" in view.lagging[0].reason
    shutil.copytree(tmp_path / "store", tmp_path / "copy", dirs_exist_ok=True)
    await cluster.until(lambda: cluster.versions() == {second.version})
    assert cluster.followers[1].lagging() == {}


async def test_who_cannot_serve_a_version_prepares_the_one_that_mends_it(cluster: Cluster, tmp_path: Path) -> None:
    cluster.limit_s = 1.0
    first = cluster.promote("first")
    rollouts = cluster.coordinate(STORE)
    await cluster.start("able", serving={STORE: Target()})
    other = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/copy", cache=tmp_path / "other"), MemoryRecorder())
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    await cluster.start("unable", tiers=other, serving={STORE: Target()})
    await rollouts.settle("town", first.version, timeout_s=WAIT_S)
    second = cluster.promote("second")
    assert (await rollouts.settle("town", second.version, timeout_s=WAIT_S)).lagging == ("unable",)
    third = cluster.publish("third")
    shutil.copytree(tmp_path / "store" / str(third.ref), tmp_path / "copy" / str(third.ref))
    cluster.tiers.catalog.promote(third.ref)
    assert (await rollouts.settle("town", third.version, timeout_s=WAIT_S)).lagging == ()
    assert cluster.versions() == {third.version}


async def test_a_version_that_nobody_can_open_changes_nothing(cluster: Cluster) -> None:
    cluster.limit_s = 0.5
    first = cluster.promote("first")
    rollouts = cluster.coordinate(STORE)
    await cluster.start("one", serving={STORE: Target()})
    await rollouts.settle("town", first.version, timeout_s=WAIT_S)
    foreign = cluster.promote("foreign", digest="sha256:" + "0" * 64)
    settled = await rollouts.settle("town", foreign.version, timeout_s=2.0)
    assert (settled.version, settled.lagging) == (first.version, ("one",))
    assert cluster.versions() == {first.version}
    assert "embedder" in rollouts.views()[0].lagging[0].reason
    assert cluster.recorders[0].values(SWAP_LAGGING, {"store": "town"})[-1] in (0, 1)
    third = cluster.promote("third")
    assert (await rollouts.settle("town", third.version, timeout_s=WAIT_S)).lagging == ()


async def test_without_a_coordinator_everything_goes_on_and_its_successor_takes_over(cluster: Cluster) -> None:
    first = cluster.promote("first")
    rollouts = cluster.coordinate(STORE)
    await cluster.start("one", serving={STORE: Target()})
    await rollouts.settle("town", first.version, timeout_s=WAIT_S)
    made = FollowedStore("vs_1", "town")
    rollouts.add_store(made)
    await rollouts.settle("vs_1", first.version, timeout_s=WAIT_S)
    await cluster.away()
    second = cluster.promote("second")
    late = await cluster.start("late", serving={STORE: Target(version=first.version, digest=first.digest)})
    assert late.names() == ()
    with cluster.shelves[0].lease("town") as opened:
        assert opened.version == first.version
    rollouts = cluster.coordinate(STORE)
    await cluster.until(lambda: all(set(shelf.names()) == {"town", "vs_1"} for shelf in cluster.shelves))
    assert (await rollouts.settle("vs_1", second.version, timeout_s=WAIT_S)).lagging == ()
    await rollouts.settle("town", second.version, timeout_s=WAIT_S)
    assert cluster.versions() == {second.version}


async def test_stores_come_empty_and_go(cluster: Cluster) -> None:
    rollouts = cluster.coordinate()
    shelf = await cluster.start("one", serving={})
    rollouts.add_store(FollowedStore("vs_1", "town"))
    await cluster.until(lambda: shelf.names() == ("vs_1",))
    with shelf.lease("vs_1") as opened:
        assert opened.index is None
    with pytest.raises(ArtifactNotFoundError, match="nothing is promoted"):
        await rollouts.settle("vs_1", "v", timeout_s=WAIT_S)
    first = cluster.promote("first")
    await rollouts.settle("vs_1", first.version, timeout_s=WAIT_S)
    assert shelf.state()["vs_1"].version == first.version
    # Its last document goes, and comes back.
    cluster.tiers.catalog.store.delete("indexes/town/PROMOTED")
    assert (await rollouts.settle("vs_1", "", timeout_s=WAIT_S)).lagging == ()
    with shelf.lease("vs_1") as opened:
        assert opened.index is None
    cluster.tiers.catalog.promote(first.ref)
    await rollouts.settle("vs_1", first.version, timeout_s=WAIT_S)
    assert shelf.state()["vs_1"].version == first.version
    rollouts.remove_store("vs_1")
    await cluster.until(lambda: shelf.names() == ())
    with pytest.raises(NotFoundError):
        await rollouts.settle("vs_1", first.version, timeout_s=WAIT_S)


async def test_a_store_for_which_a_process_has_no_room_is_told_and_taken_when_there_is(cluster: Cluster) -> None:
    first = cluster.promote("first")
    rollouts = cluster.coordinate()
    shelf = await cluster.start("one", serving={})
    for name in ("vs_1", "vs_2", "vs_3"):
        rollouts.add_store(FollowedStore(name, "town"))
    for name in ("vs_1", "vs_2"):
        assert (await rollouts.settle(name, first.version, timeout_s=WAIT_S)).lagging == ()
    await cluster.until(lambda: bool(rollouts.views()[2].lagging))
    assert "2 stores are open" in rollouts.views()[2].lagging[0].reason
    rollouts.remove_store("vs_1")
    assert (await rollouts.settle("vs_3", first.version, timeout_s=WAIT_S)).lagging == ()
    assert set(shelf.names()) == {"vs_2", "vs_3"}


async def test_a_store_that_the_release_fixes_is_left_alone(cluster: Cluster) -> None:
    first = cluster.promote("first")
    cluster.coordinate(FollowedStore("other", "town"))
    recorder = MemoryRecorder()
    shelf = Shelf(Preparation(cluster.tiers, recorder, embedder_digest=EMBEDDER.digest))
    shelf.add("fixed")
    follower = Follower("one", shelf, cluster.tiers, serving={}, sync=cluster.sync, recorder=recorder)
    await follower.join(timeout_s=WAIT_S)
    cluster.stack.push_async_callback(_cancelled, asyncio.create_task(follower.run()))
    await cluster.until(lambda: "other" in shelf.names() and shelf.state()["other"].version == first.version)
    assert shelf.state()["fixed"].version == ""
    assert set(follower.report()) == {"other"}


async def test_a_release_holds_what_it_began_with_and_what_is_mapped(cluster: Cluster) -> None:
    first = cluster.publish("first")
    fields = {
        "name": "r",
        "model": {"name": "town", "version": first.version},
        "embedder": {"name": "town", "version": first.version},
        "stores": [{"name": "town", "index": "town", "version": first.version}],
    }
    pinned = PinnedRelease(release=Release.model_validate(fields), created_at=7)
    retention = Retention(cluster.tiers.catalog)
    now = [0.0]
    holding = Holding(retention, pinned, clock=lambda: now[0])
    mapped = frozenset({first.ref})
    await holding.hold(mapped)  # there is no such model, which is told and harms nobody
    (lease,) = retention.leases()
    assert (lease.owner, lease.refs) == ("r-7", {str(first.ref)})
    (pin,) = retention.pins()
    assert (pin.owner, str(first.ref) in pin.refs) == ("r", True)
    await holding.hold(frozenset())
    assert retention.leases()[0].refs == frozenset()
