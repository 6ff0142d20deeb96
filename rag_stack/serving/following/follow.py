"""A process that searches follows the coordinator: prepares beside its work, flips between requests, says where it is.

Nothing here knows Ray: `Sync` is how the coordinator is asked. While it does not answer, what serves goes on serving.
"""

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol, TypeVar

from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import RagStackError
from rag_stack.metrics import SWAP_LAGGING, SWAP_SECONDS, SWAPS, Recorder
from rag_stack.retrieval.rollout import NOTHING, Failed, FollowedStore, Order, Orders, Report, StoreReport, Target
from rag_stack.retrieval.shelf import Prepared, Shelf

# The coordinator answers within its own limit, or is asked anew.
_ANSWER_S: Final = 12.0
_ABSENT_S: Final = 1.0
_RETRY_S: Final = (1.0, 60.0)
_END_S: Final = 10.0
_LOG: Final = logging.getLogger("ray.serve")

T = TypeVar("T")


class Sync(Protocol):
    """Asks the coordinator: answered as soon as the orders are not `known`, or after seconds; None: no answer."""

    def __call__(self, participant: str, report: Report, known: Orders | None) -> Awaitable[Orders | None]: ...


@dataclass(slots=True)
class _Following:
    """Where this process is with one store."""

    store: FollowedStore
    serving: Target = NOTHING
    order: Order | None = None
    prepared: tuple[Target, Prepared] | None = None
    prepared_s: float = 0.0
    failed: Failed | None = None
    wait_s: float = _RETRY_S[0]
    retry_s: float = 0.0

    def report(self) -> StoreReport:
        prepared = self.prepared[0] if self.prepared else None
        return StoreReport(self.store, self.serving, prepared, self.failed)

    def wanted(self) -> Target | None:
        """What has to be prepared now."""
        wanted = [
            target
            for target in ((self.order.serve, self.order.prepare) if self.order else ())
            # What came before what serves is from a coordinator that knew less.
            if target is not None and target.number >= self.serving.number and not target.same(self.serving)
        ]
        if len(wanted) > 1 and self.failed is not None and wanted[0].same(self.failed.target):
            # The next one may be what mends it.
            del wanted[0]
        for target in wanted[:1]:
            return None if self.prepared and target.same(self.prepared[0]) else target
        return None


class Follower:
    """Keeps the followed stores of a shelf at the wanted versions; the shelf's other stores are left alone."""

    def __init__(
        self,
        name: str,
        shelf: Shelf,
        tiers: Tiers,
        *,
        serving: Mapping[FollowedStore, Target],
        sync: Sync,
        recorder: Recorder,
    ) -> None:
        self.name = name
        self._shelf = shelf
        self._tiers = tiers
        self._sync = sync
        self._recorder = recorder
        self._following = {store.name: _Following(store, target) for store, target in serving.items()}
        self._fixed = frozenset(shelf.names()) - self._following.keys()
        self._orders: Orders | None = None
        self._changed = asyncio.Event()
        self._work = asyncio.Event()
        self._background = _Background()

    async def join(self, *, timeout_s: float) -> bool:
        """Take part, and serve what is wanted now; whether it does so in time. To be called before `run`."""
        try:
            async with asyncio.timeout(timeout_s):
                orders = await self._sync(self.name, self.report(), None)
                if orders is None:
                    return False
                self._take(orders)
                while (following := self._next(serve_only=True)) is not None:
                    await self._prepare(following)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follow until cancelled."""
        preparing = asyncio.create_task(self._keep_preparing())
        try:
            while True:
                await self._turn()
        finally:
            preparing.cancel()

    def report(self) -> Report:
        """Where this process is, by store."""
        return {name: following.report() for name, following in self._following.items()}

    def lagging(self) -> Mapping[str, str]:
        """Why this process does not serve what is wanted, for each store of which that is so."""
        reasons = {}
        for name, following in self._following.items():
            target = following.wanted()
            if target is None:
                continue
            if following.failed is not None and target.same(following.failed.target):
                reasons[name] = f"{target.version} is not served: {following.failed.reason}"
            elif following.order is not None and target.same(following.order.serve):
                reasons[name] = f"{target.version} is being prepared"
        return reasons

    async def _turn(self) -> None:
        """One question to the coordinator, given up when there is news to tell it."""
        self._changed.clear()
        self._tell()
        asked = asyncio.ensure_future(self._sync(self.name, self.report(), self._orders))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({asked, changed}, return_when=asyncio.FIRST_COMPLETED, timeout=_ANSWER_S)
            orders = asked.result() if asked.done() else None
            if orders is not None:
                self._take(orders)
            elif not changed.done():
                await asyncio.wait({changed}, timeout=_ABSENT_S)
        finally:
            asked.cancel()
            changed.cancel()
            await asyncio.gather(asked, changed, return_exceptions=True)

    def _take(self, orders: Orders) -> None:
        self._orders = orders
        for name in self._following.keys() - orders.keys():
            del self._following[name]
            self._shelf.drop(name)
            self._recorder.record(SWAP_LAGGING, 0, {"store": name})
        for name, order in orders.items():
            if name not in self._fixed:
                self._follow(self._following.setdefault(name, _Following(order.store)), order)
        self._work.set()

    def _follow(self, following: _Following, order: Order) -> None:
        """Bring a store as near to its order as can be done at once."""
        following.order = order
        try:
            self._shelf.add(order.store.name)
        except RagStackError as exc:
            self._fail(following, order.prepare or order.serve or NOTHING, exc)
            return
        if order.serve is not None and order.serve.number >= following.serving.number:
            if order.serve.same(following.serving):
                following.serving = order.serve
                if not order.serve.version and not self._shelf.is_empty(order.store.name):
                    self._shelf.flip(self._shelf.prepare_empty(order.store.name))
            elif following.prepared is not None and order.serve.same(following.prepared[0]):
                self._flip(following, order.serve, following.prepared[1])
        if following.prepared is not None:
            target, prepared = following.prepared
            if not target.same(order.serve) and not target.same(order.prepare):
                following.prepared = None
                self._shelf.discard(prepared)
                self._recorder.record(SWAPS, 1, {"outcome": "superseded"})

    def _flip(self, following: _Following, target: Target, prepared: Prepared) -> None:
        began_s = time.perf_counter()
        self._shelf.flip(prepared)
        now_s = time.perf_counter()
        self._recorder.record(SWAP_SECONDS, began_s - following.prepared_s, {"stage": "wait for the others"})
        self._recorder.record(SWAP_SECONDS, now_s - began_s, {"stage": "flip"})
        self._recorder.record(SWAPS, 1, {"outcome": "flipped"})
        following.serving, following.prepared, following.failed = target, None, None
        self._changed.set()

    async def _keep_preparing(self) -> None:
        """One version after another, since each takes the disk."""
        while True:
            self._work.clear()
            following = self._next(serve_only=False)
            if following is not None:
                await self._prepare(following)
                continue
            due = [f.retry_s for f in self._following.values() if f.wanted() is not None]
            try:
                async with asyncio.timeout(max(0.0, min(due) - time.monotonic()) if due else None):
                    await self._work.wait()
            except TimeoutError:
                continue

    def _next(self, *, serve_only: bool) -> _Following | None:
        """What to prepare now: what is wanted in service first."""
        now_s = time.monotonic()
        waiting = [(f, t) for f in self._following.values() if (t := f.wanted()) is not None]
        # A new target does not wait for the retries of the one before it.
        waiting = [(f, t) for f, t in waiting if f.retry_s <= now_s or f.failed is None or not t.same(f.failed.target)]
        first = [f for f, t in waiting if f.order is not None and t.same(f.order.serve)]
        others = [] if serve_only else [f for f, _ in waiting]
        return next(iter((*first, *others)), None)

    async def _prepare(self, following: _Following) -> None:
        target = following.wanted()
        if target is None:
            return
        name, index = following.store.name, following.store.index
        # The shelf drops what waits before it opens another: it is neither reported nor flipped to any more.
        following.prepared = None
        try:
            # Where there was no room for it before, there may be now.
            self._shelf.add(name)
            prepared = await self._background.run(lambda: self._prepare_now(name, index, target))
        except Exception as exc:
            # Whatever it is, this process goes on to serve what it has, and to follow.
            if not isinstance(exc, RagStackError | OSError):
                _LOG.exception("%s of the store %s could not be prepared", target.version, name)
            if self._following.get(name) is following:
                self._fail(following, target, exc)
            return
        if self._following.get(name) is not following or following.order is None:
            self._shelf.discard(prepared)
            return
        following.prepared, following.prepared_s = (target, prepared), time.perf_counter()
        # What has failed is not tried again for the next one's sake: that would have it dropped.
        if following.failed is None or target.same(following.failed.target):
            following.failed, following.wait_s = None, _RETRY_S[0]
        # Whatever was ordered meanwhile.
        self._follow(following, following.order)
        self._changed.set()

    def _prepare_now(self, store: str, index: str, target: Target) -> Prepared:
        if not target.version:
            return self._shelf.prepare_empty(store)
        manifest = self._tiers.resolve("indexes", index, target.version, digest=target.digest)
        return self._shelf.prepare(store, manifest)

    def _fail(self, following: _Following, target: Target, error: Exception) -> None:
        again = following.failed is not None and target.same(following.failed.target)
        following.wait_s = min(_RETRY_S[1], 2 * following.wait_s) if again else _RETRY_S[0]
        following.retry_s = time.monotonic() + following.wait_s
        following.failed = Failed(target, str(error))
        if not again:
            _LOG.warning(
                "the store %s stays at %s: %s", following.store.name, following.serving.version or "nothing", error
            )
        self._recorder.record(SWAPS, 1, {"outcome": "failed"})
        self._changed.set()

    def _tell(self) -> None:
        """Again and again, since Ray drops a gauge that is not set for twenty seconds."""
        lagging = self.lagging()
        for name in self._following:
            self._recorder.record(SWAP_LAGGING, float(name in lagging), {"store": name})


class _Background:
    """A thread for one piece of work after another, at the priority of those that serve.

    At a lower one it would wait for a core while it has the interpreter's lock, and make requests wait with it; what
    computes for long is done by the node's fetcher, or without the lock.

    It is there before it is needed, since a thread that starts holds up the one that starts it.
    """

    def __init__(self) -> None:
        self._works: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        thread = threading.Thread(target=_work, args=(self._works,), name="prepare", daemon=True)
        thread.start()
        weakref.finalize(self, _end, self._works, thread)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`. When nobody waits for it any more it is done all the same."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def work_and_tell() -> None:
            try:
                result = work()
            except BaseException as exc:
                loop.call_soon_threadsafe(_fail, done, exc)
            else:
                loop.call_soon_threadsafe(_succeed, done, result)

        self._works.put(work_and_tell)
        return await done


def _end(works: "SimpleQueue[Callable[[], None] | None]", thread: threading.Thread) -> None:
    """Also at the process's end: a thread that is inside FAISS while the interpreter goes would abort the process."""
    works.put(None)
    if thread is not threading.current_thread():
        thread.join(_END_S)


def _work(works: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (work := works.get()) is not None:
        # The loop that waited for it may have ended.
        with contextlib.suppress(RuntimeError):
            work()


def _succeed(done: "asyncio.Future[T]", result: T) -> None:
    if not done.cancelled():
        done.set_result(result)


def _fail(done: "asyncio.Future[T]", error: BaseException) -> None:
    if not done.cancelled():
        done.set_exception(error)
