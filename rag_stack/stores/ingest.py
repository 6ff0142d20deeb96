"""The loop that brings stores from what was asked of them to what is served: one build at a time, of one store.

Everything it must know after a crash is in the stores' state: a store that is `behind` is built again, from all files
that it then holds, so that files which came while a build ran go together into the next one.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from rag_stack.errors import NotFoundError, RagStackError, StoreLimitError, UnavailableError
from rag_stack.stores.register import Register
from rag_stack.stores.store import Outcome, Store

_NICENESS: Final = 10
# A store that is new has nothing to prepare.
_OPEN_S: Final = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """The version that was promoted, None when nothing is left to search, and what became of each file."""

    version: str | None
    outcomes: Mapping[str, Outcome]


class Build(Protocol):
    """Makes index versions of stores. Blocking; called by one thread."""

    def build(self, store: Store) -> Built:
        """Index the files of a store that are completed or wait, publish and promote. May be done again at any time.

        A file that cannot be indexed has its outcome; raises only what may go well at another time.
        """

    def discard(self, store_id: str) -> None:
        """Leave all versions of a store to the garbage collection; again, for one without any."""

    def is_current(self, store: Store) -> bool:
        """Whether the version that a store was built as can still be served, by this embedder. Raises ArtifactError."""

    def tidy(self, store_id: str) -> bool:
        """Delete versions that nobody needs any more; whether others will follow with time. What fails is left."""


class Rollout(Protocol):
    """The processes that serve searches."""

    async def add_store(self, store: str) -> None:
        """Serve a store's promoted version from now on; again changes nothing."""

    async def remove_store(self, store: str) -> None:
        """Stop to serve a store; again changes nothing."""

    async def settle(self, store: str, version: str, timeout_s: float) -> Sequence[str]:
        """Wait until all serve a version at least as new, or an empty store where `version` is empty.

        Returns who does not after `timeout_s`; nobody when all do.
        """


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited, and how often is tried.

    A build that fails is tried again, at first after `backoff_s`, then after twice as long each time up to
    `max_backoff_s`; after each `attempts` in a row the files that wait say `failed`. The serving processes get
    `settle_s` in one attempt. Every `rescan_s` all stores are looked at, whoever changed them.
    """

    attempts: int = 6
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    settle_s: float = 60.0
    rescan_s: float = 60.0


class Ingest:
    """The loop, and what may be waited for. All methods belong to one event loop."""

    def __init__(self, register: Register, build: Build, rollout: Rollout, *, patience: Patience | None = None) -> None:
        self._register = register
        self._build = build
        self._rollout = rollout
        self._patience = patience or Patience()
        # When each store's turn is, in the loop's time.
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        # What was built and is not served by all yet, with the generation that it is of.
        self._built: dict[str, tuple[int, Built]] = {}
        self._building: str | None = None
        self._looked_at: set[str] = set()
        self._untidy: set[str] = set()
        self._woken = asyncio.Event()
        self._served = asyncio.Condition()
        # Searches come first: a build can wait for a core, and the threads that it begins with it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ingest", initializer=_be_nice)

    async def run(self) -> None:
        """Work until cancelled. What goes wrong is logged and tried again."""
        try:
            while True:
                try:
                    await self._rescan()
                    await self._work_until(time.monotonic() + self._patience.rescan_s)
                except Exception:
                    _log.exception("the stores cannot be looked at; trying again")
                    await asyncio.sleep(self._patience.backoff_s)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def wake(self, store_id: str) -> None:
        """Say that a store was changed; one whose build has just failed still waits for its next attempt."""
        self._due.setdefault(store_id, time.monotonic())
        self._woken.set()

    async def open(self, store_id: str) -> None:
        """Have a new store served, empty as it is. Raises StoreLimitError, and nothing that passes by itself."""
        try:
            await self._rollout.add_store(store_id)
            await self._rollout.settle(store_id, "", _OPEN_S)
        except StoreLimitError:
            await self._sweep((await asyncio.to_thread(self._register.mark_deleted, store_id)).store_id)
            raise
        except RagStackError as exc:
            _log.warning("the store %s is not served yet: %s", store_id, exc.message)

    async def settled(self, store_id: str, generation: int, *, timeout_s: float) -> None:
        """Wait until every serving process has a store's `generation`, or the store is deleted.

        Raises UnavailableError after `timeout_s`; the change goes on.
        """
        self.wake(store_id)

        def reached() -> bool:
            store = self._register.known(store_id)
            return store is None or store.served >= generation

        try:
            async with asyncio.timeout(timeout_s), self._served:
                await self._served.wait_for(reached)
        except TimeoutError as exc:
            raise UnavailableError(
                f"the change to the store {store_id!r} is stored and goes on, but not every server has it after "
                f"{timeout_s:.0f} s; ask again",
                retry_after_s=5,
            ) from exc

    async def delete(self, store_id: str, *, timeout_s: float) -> None:
        """Delete a store: its searches end, its state goes, its versions are left to the garbage collection.

        Raises NotFoundError, or UnavailableError after `timeout_s`; the deletion goes on.
        """
        await asyncio.to_thread(self._register.mark_deleted, store_id)
        self._due.pop(store_id, None)
        try:
            async with asyncio.timeout(timeout_s):
                await self._sweep(store_id)
        except TimeoutError as exc:
            raise UnavailableError(
                f"the store {store_id!r} is being deleted, but not gone everywhere after {timeout_s:.0f} s; ask again",
                retry_after_s=5,
            ) from exc

    async def _rescan(self) -> None:
        for store in await asyncio.to_thread(self._register.all):
            if store.deleted:
                await self._sweep(store.store_id)
                continue
            store = await self._renewed(store)
            # Deleted since it was read: it must not be served again.
            if self._register.known(store.store_id) is None:
                continue
            try:
                await self._rollout.add_store(store.store_id)
            except RagStackError as exc:
                _log.warning("the store %s is not served: %s", store.store_id, exc.message)
            if store.behind:
                self._due.setdefault(store.store_id, time.monotonic())
        for store_id in list(self._untidy):
            await self._tidy(store_id)

    async def _renewed(self, store: Store) -> Store:
        """A store as it is, once looked at: one that cannot be served as it was built is built again."""
        if store.store_id in self._looked_at:
            return store
        try:
            if store.index_version and not await asyncio.to_thread(self._build.is_current, store):
                _log.warning("the store %s is of another embedder or made otherwise, and is built again", store.name)
                store = await asyncio.to_thread(self._register.change, store.store_id, Store.touched)
        except RagStackError as exc:
            _log.warning("cannot see how the store %s was built: %s", store.store_id, exc.message)
            return store
        self._looked_at.add(store.store_id)
        return store

    async def _tidy(self, store_id: str) -> None:
        try:
            more = await asyncio.get_running_loop().run_in_executor(self._thread, self._build.tidy, store_id)
        except Exception:
            _log.exception("old versions of the store %s stay", store_id)
            return
        (self._untidy.add if more else self._untidy.discard)(store_id)

    async def _work_until(self, end_s: float) -> None:
        while (now := time.monotonic()) < end_s:
            self._woken.clear()
            first = min(self._due, key=lambda each: self._due[each], default=None)
            if first is not None and self._due[first] <= now:
                await self._work(first)
                continue
            next_s = end_s if first is None else min(end_s, self._due[first])
            try:
                async with asyncio.timeout(max(0.0, next_s - now)):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _work(self, store_id: str) -> None:
        """One attempt to bring one store up to date."""
        self._due.pop(store_id, None)
        store: Store | None = None
        try:
            store = await asyncio.to_thread(self._register.get, store_id)
            if store.behind:
                await self._bring(store)
            self._failures.pop(store_id, None)
        except NotFoundError:
            # Deleted, perhaps while it was being built.
            self._failures.pop(store_id, None)
            await self._sweep(store_id)
        except Exception as exc:
            await self._failed(store_id, store, exc)
        async with self._served:
            self._served.notify_all()
        if store is not None and store_id not in self._failures:
            await self._tidy(store_id)

    async def _bring(self, store: Store) -> None:
        generation, built = self._built.get(store.store_id, (-1, None))
        if built is None or generation != store.generation:
            built = await self._build_now(store)
            # It may have been deleted meanwhile, and must not be served again.
            await asyncio.to_thread(self._register.get, store.store_id)
            self._built[store.store_id] = store.generation, built
        await self._rollout.add_store(store.store_id)
        lagging = await self._rollout.settle(store.store_id, built.version or "", self._patience.settle_s)
        if lagging:
            told = f"{', '.join(lagging)} cannot serve version {built.version or 'without documents'}"
            if (self._failures.get(store.store_id, 0) + 1) % self._patience.attempts:
                raise UnavailableError(told)
            # They go on with what they have, and say so; the others have had it all this time.
            _log.warning("the store %s is up to date, but %s", store.store_id, told)
        self._built.pop(store.store_id, None)
        changed = await asyncio.to_thread(
            self._register.change,
            store.store_id,
            lambda now: now.indexed(store.generation, built.version, built.outcomes),
        )
        if changed.behind:
            self.wake(store.store_id)

    async def _build_now(self, store: Store) -> Built:
        self._building = store.store_id
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._build.build, store)
        finally:
            self._building = None

    async def _failed(self, store_id: str, store: Store | None, exc: Exception) -> None:
        failures = self._failures[store_id] = self._failures.get(store_id, 0) + 1
        patience = self._patience
        wait_s = min(patience.max_backoff_s, patience.backoff_s * 2 ** min(failures - 1, 20))
        reason = exc.message if isinstance(exc, RagStackError) else f"{type(exc).__name__}: {exc}"
        _log.warning(
            "the store %s is not up to date after %d attempts: %s; next in %.1f s",
            *(store_id, failures, reason, wait_s),
            exc_info=None if isinstance(exc, RagStackError) else exc,
        )
        self._due[store_id] = time.monotonic() + wait_s
        if store is None or failures % patience.attempts:
            return
        generation = store.generation
        try:
            await asyncio.to_thread(self._register.change, store_id, lambda now: now.given_up(generation, reason))
        except RagStackError as inner:
            _log.warning("cannot say so in the state of the store %s either: %s", store_id, inner.message)

    async def _sweep(self, store_id: str) -> None:
        await self._rollout.remove_store(store_id)
        self._built.pop(store_id, None)
        if store_id == self._building:
            # The build may yet promote; what comes after it finds the mark, and clears all away.
            return
        await asyncio.to_thread(self._build.discard, store_id)
        await asyncio.to_thread(self._register.forget, store_id)
        async with self._served:
            self._served.notify_all()


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
