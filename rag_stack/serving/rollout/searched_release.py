"""What the search server has open of a release, and how the next one takes its place: opened beside, then swapped.

The two are in memory together for as long as the new one opens and the old one answers what it has begun: a second
embedder and the pages of both indexes, for seconds. Searches wait for neither.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api.auth import KeyRing
from rag_stack.api.gate import Gate
from rag_stack.api.health import OPEN_PATHS
from rag_stack.api.rag_layer import release_header
from rag_stack.api.store_control import StoreControl
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.errors import RagStackError
from rag_stack.metrics import Recorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.cache_report import keep_telling
from rag_stack.serving.following.follow import Follower
from rag_stack.serving.following.membership import follow, leave
from rag_stack.serving.following.owned_stores import own_stores
from rag_stack.serving.node_agent import cluster_peers
from rag_stack.serving.node_fetch import NodeFetch
from rag_stack.serving.opening import OpenRetrieval, open_retrieval
from rag_stack.serving.request_id import NamedByServe
from rag_stack.serving.rollout.goal import release_goal
from rag_stack.timeline import Timeline
from rag_stack.tracing.tracer import Tracer

_POLL_S: Final = 2.0
_RETRY_S: Final = 30.0
# Searches that the old one has begun.
_LINGER_S: Final = 30.0
_LOG: Final = logging.getLogger("ray.serve")


@dataclass(slots=True)
class _Searched:
    """One release, opened."""

    pinned: PinnedRelease
    retrieval: OpenRetrieval
    stores: StoreControl
    app: ASGIApp
    follower: Follower | None = None
    tasks: tuple[asyncio.Task[None], ...] = ()

    def begin(self, follower: Follower) -> None:
        """Follow the stores and take in files; one process does that for one release at a time."""
        self.follower = follower
        self.tasks = (asyncio.create_task(follower.run()), asyncio.create_task(self.stores.keeper.ingest.run()))

    async def end(self) -> None:
        """Leave stores and files to another one."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class SearchedRelease:
    """An ASGI app: that of the promoted release. `open` first, then keep `run` running."""

    def __init__(self, deployed: PinnedRelease, recorder: Recorder, tracer: Tracer) -> None:
        artifacts = deployed.release.artifacts
        self._deployed = deployed
        self._recorder = recorder
        self._tracer = tracer
        self._tiers: Tiers = open_tiers(artifacts, recorder, peers=cluster_peers(artifacts))
        self._now: _Searched
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def stores(self) -> StoreControl:
        """Those of the release that is open now."""
        return self._now.stores

    async def open(self) -> None:
        """Open what is promoted."""
        pinned = await asyncio.to_thread(release_goal, self._deployed, self._tiers)
        self._now = await self._opened(pinned)
        await self._begin(self._now)

    async def run(self) -> None:
        """Go along with what is promoted, and tell how full the cache is, until cancelled."""
        await asyncio.gather(self._keep_up(), keep_telling(self._tiers.cache, self._recorder))

    async def _keep_up(self) -> None:
        """Look at what is promoted, and open that. What cannot be opened is tried again, later."""
        while True:
            await asyncio.sleep(_POLL_S)
            pinned = await asyncio.to_thread(release_goal, self._deployed, self._tiers, serving=self._now.pinned)
            if pinned.version == self._now.pinned.version:
                continue
            if searches_alike(pinned, self._now.pinned):
                self._now.pinned, self._now.app = pinned, self._app(pinned, self._now.stores)
                continue
            try:
                await self._change(pinned)
            except (RagStackError, OSError) as exc:
                _LOG.warning("search stays with %s, for %s: %s", self._now.pinned.version, pinned.version, exc)
                await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """The end of the process: stop, and say so to those that would wait for it. It may not have opened anything."""
        if not hasattr(self, "_now"):
            return
        await self._now.end()
        if self._now.follower is not None:
            await leave(self._now.follower)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._now.app(scope, receive, send)

    async def _change(self, pinned: PinnedRelease) -> None:
        following = await self._opened(pinned)
        before = self._now
        await before.end()
        self._now = following
        await self._begin(following)
        task = asyncio.create_task(_close_later(before))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _opened(self, pinned: PinnedRelease) -> _Searched:
        retrieval = await asyncio.to_thread(
            open_retrieval,
            pinned,
            self._tiers,
            timeline=Timeline(),
            recorder=self._recorder,
            fetch_beside=NodeFetch(pinned.release.artifacts),
            tracer=self._tracer,
        )
        stores = own_stores(pinned, retrieval)
        return _Searched(pinned, retrieval, stores, self._app(pinned, stores))

    def _app(self, pinned: PinnedRelease, stores: StoreControl) -> ASGIApp:
        """The stores' routes behind a gate, which names the release on every answer."""
        gate = Gate(
            stores.routes(),
            keys=KeyRing(pinned.release.server.api_key_sha256),
            open_paths=OPEN_PATHS,
            recorder=self._recorder,
            release=release_header(pinned.release.name, pinned.version),
            tracer=self._tracer,
        )
        return NamedByServe(gate)

    async def _begin(self, searched: _Searched) -> None:
        searched.begin(await follow(searched.retrieval, self._recorder))


def searches_alike(one: PinnedRelease, other: PinnedRelease) -> bool:
    """Whether two releases answer every search in the same way."""
    fields = ("embedder", "reranker", "stores", "retrieval")
    alike = all(getattr(one.release, field) == getattr(other.release, field) for field in fields)
    return alike and one.followed == other.followed


async def _close_later(searched: _Searched) -> None:
    await asyncio.sleep(_LINGER_S)
    await asyncio.to_thread(searched.retrieval.retriever.close)
    for name in searched.retrieval.shelf.names():
        searched.retrieval.shelf.drop(name)
