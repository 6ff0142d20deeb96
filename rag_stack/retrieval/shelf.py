"""The open stores of one process: each request takes one version of one, and a new version takes the old one's place.

A version is unmapped once it has been replaced and its last reader is gone, in a thread that does nothing else: neither
a request nor the event loop waits for the kernel, or for a thread to start.
"""

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread
from typing import Final

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.pin import Pin
from rag_stack.errors import NotFoundError, StoreLimitError, UnavailableError
from rag_stack.index.reader import IndexVersion
from rag_stack.retrieval.filters import MaskCache
from rag_stack.retrieval.preparation import Preparation

MAX_STORES: Final = 256
_END_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class OpenStore:
    """A store as one request sees it. Without an index it is `empty`, or its version is not open yet."""

    name: str
    index: IndexVersion | None = None
    masks: MaskCache | None = None
    empty: bool = False

    @property
    def version(self) -> str:
        """The index version; empty where there is none."""
        return "" if self.index is None else self.index.version


@dataclass(frozen=True, slots=True)
class StoreState:
    """What is open of a store: `version` serves (empty: none yet), `prepared` waits to, `retired` still has readers."""

    version: str
    documents: int = 0
    usage_bytes: int = 0
    prepared: str | None = None
    retired: int = 0


class Prepared:
    """A version of a store that is open and may serve; `Shelf.flip` or `Shelf.discard` it."""

    def __init__(self, store: str, held: "_Held") -> None:
        self.store = store
        self._held = held

    @property
    def version(self) -> str:
        """The index version."""
        return self._held.open.version


class Shelf:
    """The stores, by name. Safe to use from several threads; no lock is held while anybody searches or opens."""

    def __init__(self, preparation: Preparation | None = None, *, max_stores: int = MAX_STORES) -> None:
        self._preparation = preparation
        self._max_stores = max_stores
        self._lock = Lock()
        self._stores: dict[str, _Held] = {}
        self._prepared: dict[str, _Held] = {}
        self._retired: list[_Held] = []
        self._idle: SimpleQueue[_Held | None] = SimpleQueue()
        thread = Thread(target=_unmap, args=(self._idle,), name="unmap", daemon=True)
        thread.start()
        # The thread does not know the shelf, and ends with it.
        weakref.finalize(self, _end, self._idle, thread)

    def names(self) -> tuple[str, ...]:
        """The stores that there are now, in the order in which they came."""
        with self._lock:
            return tuple(self._stores)

    def __contains__(self, store: object) -> bool:
        return store in self._stores

    def is_empty(self, store: str) -> bool:
        """Whether a store is known to hold nothing; false for one that is not there."""
        with self._lock:
            held = self._stores.get(store)
            return held is not None and held.open.empty

    def add(self, store: str, index: IndexVersion | None = None, *, pin: Pin | None = None) -> None:
        """A new store, with its first version, whose pin goes when it does, or not open yet; one that is there stays.

        Raises StoreLimitError.
        """
        with self._lock:
            if store in self._stores:
                return
            if len(self._stores) >= self._max_stores:
                raise StoreLimitError(
                    f"{len(self._stores)} stores are open, and this server opens {self._max_stores} at most: delete "
                    "one, or raise `swap.max_stores` in the release"
                )
            self._stores[store] = _Held.of(store, index, pin)

    def drop(self, store: str) -> None:
        """Take a store away; requests that have leased it finish. One that is not there is no error."""
        with self._lock:
            gone = [held for held in (self._stores.pop(store, None), self._prepared.pop(store, None)) if held]
        self._retire(*gone)

    @contextmanager
    def lease(self, store: str) -> Iterator[OpenStore]:
        """One version of a store, open until the block ends, whatever is flipped meanwhile. Raises NotFoundError."""
        with self._lock:
            held = self._stores.get(store)
            if held is None:
                raise self.unknown(store)
            held.readers += 1
        try:
            yield held.open
        finally:
            with self._lock:
                held.readers -= 1
                if held.retired and held.readers == 0:
                    self._idle.put(held)

    def unknown(self, store: str) -> NotFoundError:
        """The error for a store that is not there."""
        return NotFoundError(f"the store {store!r} does not exist; there are {sorted(self._stores)}")

    def prepare(self, store: str, manifest: Manifest) -> Prepared:
        """Open a version beside the one that serves: fetched, mapped, in memory, tried out. Blocking: up to minutes.

        At most one version of a store waits; another one that did is dropped first. Raises NotFoundError,
        IndexTooLargeError with the sum, EmbedderMismatchError, IndexVersionError or an ArtifactError.
        """
        if self._preparation is None:
            raise UnavailableError("this shelf opens no versions")
        with self._lock:
            waiting = self._prepared.pop(store, None)
        if waiting is not None:
            self._retire(waiting)
        with self.lease(store) as serving:
            ready = self._preparation.prepare(manifest, beside=serving.index)
        return self._waiting(store, _Held.of(store, ready.index, ready.pin))

    def prepare_empty(self, store: str) -> Prepared:
        """A version without anything to find, for a store without documents. Raises NotFoundError."""
        return self._waiting(store, _Held(OpenStore(store, empty=True), None, Event()))

    def flip(self, prepared: Prepared) -> None:
        """From now on new leases get this version; those that run keep theirs. Does not block.

        One that was discarded, or whose store was dropped, changes nothing.
        """
        with self._lock:
            if self._prepared.get(prepared.store) is not prepared._held:
                return
            del self._prepared[prepared.store]
            old, self._stores[prepared.store] = self._stores[prepared.store], prepared._held
        self._retire(old)

    def discard(self, prepared: Prepared) -> None:
        """Close a version that will not serve; one that does stays."""
        with self._lock:
            if self._prepared.get(prepared.store) is not prepared._held:
                return
            del self._prepared[prepared.store]
        self._retire(prepared._held)

    def state(self) -> Mapping[str, StoreState]:
        """What is open, by store."""
        with self._lock:
            return {name: self._state(name, held) for name, held in self._stores.items()}

    def wait_unmapped(self, timeout_s: float) -> bool:
        """Whether everything that was replaced or dropped is unmapped by then. Blocking."""
        with self._lock:
            waiting = list(self._retired)
        return all(held.closed.wait(timeout_s) for held in waiting)

    def _waiting(self, store: str, held: "_Held") -> Prepared:
        """Let a version wait for its flip, in the place of another one that did. Raises NotFoundError."""
        with self._lock:
            there = store in self._stores
            former = self._prepared.get(store)
            if there:
                self._prepared[store] = held
        if former is not None:
            self._retire(former)
        if not there:
            self._retire(held)
            raise self.unknown(store)
        return Prepared(store, held)

    def _state(self, name: str, held: "_Held") -> StoreState:
        index, prepared = held.open.index, self._prepared.get(name)
        return StoreState(
            version=held.open.version,
            documents=index.document_count if index else 0,
            usage_bytes=index.usage_bytes if index else 0,
            prepared=prepared.open.version if prepared else None,
            retired=sum(old.open.name == name and not old.closed.is_set() for old in self._retired),
        )

    def _retire(self, *gone: "_Held") -> None:
        with self._lock:
            self._retired = [held for held in self._retired if not held.closed.is_set()]
            for held in gone:
                held.retired = True
                self._retired.append(held)
                if held.readers == 0:
                    self._idle.put(held)


@dataclass(slots=True, eq=False)
class _Held:
    """One version of one store, and how many read it; closed once it is retired and nobody does."""

    open: OpenStore
    pin: Pin | None
    closed: Event
    readers: int = 0
    retired: bool = False

    @classmethod
    def of(cls, store: str, index: IndexVersion | None, pin: Pin | None) -> "_Held":
        masks = None if index is None else MaskCache(index.passages)
        return cls(OpenStore(store, index, masks), pin, Event())

    def close(self) -> None:
        """Unmap it, then let its files go."""
        index, self.open = self.open.index, OpenStore(self.open.name)
        if index is not None:
            index.close()
        if self.pin is not None:
            self.pin.release()
        self.closed.set()


def _end(idle: "SimpleQueue[_Held | None]", thread: Thread) -> None:
    """Also at the process's end: a thread that is inside FAISS while the interpreter goes would abort the process."""
    idle.put(None)
    if thread is not current_thread():
        thread.join(_END_S)


def _unmap(idle: "SimpleQueue[_Held | None]") -> None:
    while (held := idle.get()) is not None:
        try:
            held.close()
        except OSError:
            # The pin's file is gone or not to be touched: what matters is done.
            logging.getLogger(__name__).exception("a replaced version is unmapped, but its pin may still be held")
            held.closed.set()
