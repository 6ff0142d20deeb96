"""The coordinator at work: looks at the promoted pointers, keeps questions open while there is no news. No Ray here."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.errors import ArtifactError, ArtifactNotFoundError
from rag_stack.retrieval.rollout import Coordinator, FollowedStore, Orders, Report, StoreView

# A question that is kept open for so long shows, too, that its participant lives.
_KEEP_OPEN_S: Final = 5.0
_TICK_S: Final = 0.5
_LOG: Final = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Settled:
    """A store whose wanted version all live participants serve, but for those that lag."""

    version: str
    lagging: tuple[str, ...]


class Rollouts:
    """Brings what is promoted into service. All methods belong to one event loop; `run` has to run in it."""

    def __init__(
        self,
        coordinator: Coordinator,
        catalog: Catalog,
        *,
        poll_s: float,
        hold: Callable[[frozenset[ArtifactRef]], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator = coordinator
        self._catalog = catalog
        self._poll_s = poll_s
        self._hold = hold
        self._clock = clock
        self._news = asyncio.Event()
        self._looking: dict[str, asyncio.Lock] = {}
        self._unreadable: set[str] = set()

    async def run(self) -> None:
        """Look at all pointers again and again, until cancelled."""
        ticking = asyncio.create_task(self._tick())
        try:
            while True:
                for store in self._coordinator.stores:
                    await self._look_or_log(store)
                mapped = self._coordinator.versions()
                await self._hold(frozenset(ArtifactRef("indexes", index, version) for index, version in mapped))
                await asyncio.sleep(self._poll_s)
        finally:
            ticking.cancel()

    async def sync(self, participant: str, report: Report, known: Orders | None) -> Orders:
        """See Coordinator.sync; answered when there are other orders than those it knows, or after some seconds."""
        orders = self._coordinator.sync(participant, report, now_s=self._clock())
        # A report by itself is news only to those who wait for a store to settle; they look each time.
        self._wake()
        until_s = self._clock() + _KEEP_OPEN_S
        while orders == known and (left_s := until_s - self._clock()) > 0:
            await self._wait(left_s)
            self._coordinator.alive(participant, now_s=self._clock())
            orders = self._coordinator.orders()
        return orders

    def leave(self, participant: str) -> None:
        """See Coordinator.leave."""
        self._coordinator.leave(participant)
        self._advance()

    async def promoted(self, index: str, version: str) -> None:  # noqa: ARG002 - what is promoted is looked up
        """Look now at the stores that follow an index. An object store that does not answer is asked again later."""
        for store in self._coordinator.stores:
            if store.index == index:
                await self._look_or_log(store)

    async def settle(self, name: str, version: str, *, timeout_s: float) -> Settled:
        """Wait until all live participants serve a version of a store at least as new as `version`, which is promoted.

        Returns early when all others have failed to, and otherwise after `timeout_s`, with who lags. An empty
        version means an empty store, of those made over HTTP. Raises NotFoundError, or ArtifactNotFoundError when
        nothing is promoted.
        """
        # What is promoted now is the version, or a newer one.
        store = self._coordinator.followed(name)
        if not await self._look(store) and (version or store.of_release):
            raise ArtifactNotFoundError(f"nothing is promoted for the store {name!r}; promote {version!r} first")
        until_s = self._clock() + timeout_s
        while True:
            waiting = self._coordinator.waiting(name)
            lagging = {lag.participant for lag in self._coordinator.lagging(name, now_s=self._clock())}
            if self._coordinator.is_open(name) and set(waiting) <= lagging:
                break
            if (left_s := until_s - self._clock()) <= 0:
                break
            await self._wait(left_s)
        view = next(view for view in self.views() if view.store.name == name)
        return Settled(view.version, waiting)

    def add_store(self, store: FollowedStore) -> None:
        """See Coordinator.add_store; its pointer is looked at with the next turn, or by `settle`."""
        self._coordinator.add_store(store)
        self._wake()

    def remove_store(self, name: str) -> None:
        """See Coordinator.remove_store."""
        self._coordinator.remove_store(name)
        self._looking.pop(name, None)
        self._wake()

    def views(self) -> Sequence[StoreView]:
        """See Coordinator.views."""
        return self._coordinator.views(now_s=self._clock())

    async def _look_or_log(self, store: FollowedStore) -> None:
        """What is served stays as it is while the object store does not answer; that is said once."""
        try:
            await self._look(store)
            self._unreadable.discard(store.name)
        except ArtifactError as exc:
            if store.name not in self._unreadable:
                self._unreadable.add(store.name)
                _LOG.warning("cannot see what is promoted for the store %s: %s", store.name, exc)

    async def _look(self, store: FollowedStore) -> bool:
        """Read a pointer; whether anything is promoted. One look at a time, or an older one would come last.

        A store made over HTTP of which nothing is promoted is empty, and that is served; one of a release stays at
        what it has.
        """
        async with self._looking.setdefault(store.name, asyncio.Lock()):
            pointer = await asyncio.to_thread(self._catalog.promoted, "indexes", store.index)
            if store not in self._coordinator.stores or (pointer is None and store.of_release):
                return pointer is not None
            version, digest = (pointer.version, pointer.digest) if pointer else ("", "")
            self._coordinator.set_target(store.name, version=version, digest=digest, now_s=self._clock())
        self._advance()
        return pointer is not None

    async def _tick(self) -> None:
        """Limits pass without anybody saying so."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._advance()

    def _advance(self) -> None:
        before = self._coordinator.orders()
        self._coordinator.advance(self._clock())
        if self._coordinator.orders() != before:
            self._wake()

    async def _wait(self, timeout_s: float) -> None:
        """For news, and a tick at most: who lags changes with time alone."""
        news = self._news
        # Not `wait_for`, which in Python 3.11 may lose a cancellation that comes with the news.
        try:
            async with asyncio.timeout(min(timeout_s, _TICK_S)):
                await news.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
