"""The indexes of one process on its device: each in its share of one budget, freed with its version, else on the host.

Tested with a device that is the host, and on a real one where there is one (tests/integration/test_gpu_device.py).
"""

import logging
from threading import Lock, Thread
from typing import Final

import faiss
import numpy as np

from rag_stack.config import GpuIndexConfig
from rag_stack.index.gpu_index import Device, FreedError, OnDevice, gpu_device, hot_lists, place, same_lists
from rag_stack.index.gpu_placement import Rows, Vectors, VisitCounts
from rag_stack.metrics import GPU_INDEX_BYTES, INDEX_SEARCHES, Recorder

# Hot lists are chosen anew after so many queries, and then after twice as many each time.
_FIRST_CHOICE_QUERIES: Final = 500
_LAST_CHOICE_QUERIES: Final = 100_000
# Others must have so many times the visits of those that are there: a copy costs the host's answers meanwhile.
_WORTH: Final = 1.05
_SEED: Final = 20
_TRIED: Final = 4

_LOG = logging.getLogger(__name__)


class GpuMemory:
    """What indexes take of one device. Safe for several threads.

    Each gets half a store's share of the budget, since a new version is copied beside the one that serves. Without a
    device, nothing is placed: that was told once.
    """

    def __init__(
        self, device: Device | None, *, budget_bytes: int, stores: int, recorder: Recorder, cagra: bool = False
    ) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self.recorder = recorder
        self.cagra = cagra
        self._share = budget_bytes // (2 * max(1, stores))
        self._lock = Lock()
        self._taken = 0
        self._placed = 0

    @classmethod
    def open(cls, config: GpuIndexConfig, *, stores: int, recorder: Recorder) -> "GpuMemory | None":
        """The first device that this process sees; None where the release wants none. One warning where there is none.

        Ray shows a replica the device that it has a share of, and no other.
        """
        if not config.enabled:
            return None
        device = gpu_device(0)
        if device is None:
            _LOG.warning(
                "gpu_index is enabled, and FAISS %s has no device here: all is searched on the host. Install "
                "faiss-gpu-cuvs where there is a GPU, or leave gpu_index out of the release",
                faiss.__version__,
            )
        return cls(
            device, budget_bytes=config.memory_bytes, stores=stores, recorder=recorder, cagra=config.kind == "cagra"
        )

    def place(self, index: faiss.Index, *, like: "Placement | None" = None) -> "Placement | None":
        """Put an open index on the device; None, with one warning, where it stays on the host. Blocking: a copy.

        It must outlive the placement. `like` is the placement of the version that serves: what it knows of the visits
        to its lists is kept where the new version has the same lists.
        """
        if self.device is None:
            return None
        known = like.counts if like is not None and like.same_lists(index) else None
        with self._lock:
            room = min(self._share, self.budget_bytes - self._taken)
            self._taken += room
        placed = None
        try:
            placed = place(index, self.device, budget_bytes=room, counts=known, cagra=self.cagra)
            if placed is not None and not _sane(placed, index):
                _free(placed)
                placed = None
                _LOG.warning("the index is searched on the host: what it finds on the device makes no sense")
        finally:
            kept = 0 if placed is None else placed.plan.size_bytes
            with self._lock:
                self._taken += kept - room
                self._placed += placed is not None
        self.tell()
        return None if placed is None else Placement(self, index, placed)

    def give_back(self, size_bytes: int) -> None:
        """What a placement took is free again."""
        with self._lock:
            self._taken -= size_bytes
            self._placed -= 1
        self.tell()

    def tell(self) -> None:
        """How much is taken, as a metric; again and again, since Ray forgets a gauge."""
        self.recorder.record(GPU_INDEX_BYTES, self._taken)

    def __str__(self) -> str:
        if self.device is None:
            return "on the host, FAISS has no device"
        with self._lock:
            taken, placed = self._taken, self._placed
        return f"{placed} on the device, {taken / 1e9:.3f} of {self.budget_bytes / 1e9:.3f} GB"


class Placement:
    """One index version on the device, until it is closed. Searches may run in several threads at once."""

    def __init__(self, memory: GpuMemory, index: faiss.Index, placed: OnDevice) -> None:
        self._memory = memory
        self._index = index
        self._placed: OnDevice | None = placed
        self._size_bytes = placed.plan.size_bytes
        self._lock = Lock()
        self._closed = False
        self._given_back = False
        self._queries = 0
        self._due = _FIRST_CHOICE_QUERIES
        self._choosing: Thread | None = None
        self.counts: VisitCounts | None = placed.counts

    def answer(self, vectors: Vectors, k: int, *, filtered: bool) -> tuple[Vectors, Rows] | None:
        """The k nearest to each vector; None where the host must say: with a filter, or once the device has failed."""
        found = None if filtered else self._search(vectors, k)
        self._memory.recorder.record(INDEX_SEARCHES, 1, {"place": "host" if found is None else "device"})
        return found

    def same_lists(self, index: faiss.Index) -> bool:
        """Whether another index has the same inverted lists, by number."""
        return self.counts is not None and same_lists(self._index, index)

    def close(self) -> None:
        """Free it. Nobody may search any more. Waits for a copy that is being made."""
        with self._lock:
            self._closed = True
            choosing = self._choosing
        if choosing is not None:
            choosing.join()
        self._end()

    def _search(self, vectors: Vectors, k: int) -> tuple[Vectors, Rows] | None:
        placed = self._placed
        if placed is None or k > placed.largest_k:
            return None
        try:
            found = placed.search(vectors, k)
        except FreedError:
            return None
        except (RuntimeError, MemoryError) as exc:
            with self._lock:
                first, self._placed = self._placed is placed, None
            if first:
                _LOG.warning("the index is searched on the host from now on: the device fails: %s", exc)
                _free(placed)
                self._end()
            return None
        if placed.counts is not None:
            self._count(len(vectors))
        return found

    def _count(self, queries: int) -> None:
        with self._lock:
            self._queries += queries
            if self._queries < self._due or self._choosing is not None or self._closed:
                return
            self._queries, self._due = 0, min(2 * self._due, _LAST_CHOICE_QUERIES)
            self._choosing = Thread(target=self._choose, name="hot-lists", daemon=True)
            self._choosing.start()

    def _choose(self) -> None:
        """Put the lists that are hot now in the place of those that were. The host answers while they are copied."""
        try:
            placed = self._placed
            if placed is None or placed.counts is None or placed.hot is None or self._memory.device is None:
                return
            visits = placed.counts.visits()
            hot = hot_lists(self._index, placed.plan, placed.counts)
            if visits[hot].sum() <= _WORTH * visits[placed.hot].sum():
                return
            # The old ones first: there is room for one of both.
            self._take(placed, None)
            _free(placed)
            size_bytes = placed.plan.size_bytes
            anew = place(self._index, self._memory.device, budget_bytes=size_bytes, counts=placed.counts)
            if anew is None:
                self._end()
            elif not self._take(None, anew):
                _free(anew)
        finally:
            with self._lock:
                self._choosing = None

    def _take(self, old: OnDevice | None, new: OnDevice | None) -> bool:
        with self._lock:
            if self._placed is not old or self._given_back:
                return False
            self._placed = new
            return True

    def _end(self) -> None:
        with self._lock:
            placed, self._placed = self._placed, None
            first, self._given_back = not self._given_back, True
        if placed is not None:
            _free(placed)
        if first:
            self._memory.give_back(self._size_bytes)


def _free(placed: OnDevice) -> None:
    if placed.copy is not None:
        placed.copy.free()


def _sane(placed: OnDevice, index: faiss.Index) -> bool:
    """Whether a few random queries find rows that are there, with finite scores."""
    vectors = np.random.default_rng(_SEED).standard_normal((_TRIED, int(index.d))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    try:
        scores, rows = placed.search(vectors, min(8, int(index.ntotal)))
    except (RuntimeError, MemoryError):
        return False
    found = rows >= 0
    return bool(found.any() and (rows < index.ntotal).all() and np.isfinite(scores[found]).all())
