"""Which inverted lists lie on the device when not all fit, and a search over the two parts as if they were one.

The parts are a host index that holds all lists and a device index that holds copies of the most visited ones. A query
probes the same lists as ever: the hot ones on the device, the others on the host, and the best of both are its answer.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Lists = npt.NDArray[np.int64]

_HALF_LIFE_QUERIES: Final = 100_000
# Weights grow instead of all counts being halved; before they run out, all are divided.
_LARGEST_WEIGHT: Final = 1e30
_FLOAT_BYTES: Final = 4
_ID_BYTES: Final = 8
# A device's lists are filled up to whole warps of vectors, and each is two allocations, of multiples of so many bytes:
# the driver gives large ones in pages of their own.
_WARP: Final = 32
_GRAIN: Final = 512
_LARGE: Final = 1 << 20
_PAGE: Final = 2 << 20


class VisitCounts:
    """How often each list was probed, where older queries count for less: half as much after `half_life` queries.

    Several threads may count at once. A lost visit does no harm.
    """

    def __init__(self, lists: int, *, half_life: int = _HALF_LIFE_QUERIES) -> None:
        self._counts = np.zeros(lists + 1)
        self._weight = 1.0
        self._growth = 2.0 ** (1.0 / half_life)

    def observe(self, probed: Lists) -> None:
        """Count the lists of some queries, [n, nprobe]; -1 is none."""
        for line in probed:
            # No list is probed twice by one query, but -1, whose place is the last.
            self._counts[line] += self._weight
            self._weight *= self._growth
        if self._weight > _LARGEST_WEIGHT:
            self._counts /= self._weight
            self._weight = 1.0

    def visits(self) -> npt.NDArray[np.float64]:
        """The decayed number of visits of each list, [nlist]."""
        return self._counts[:-1] / self._weight


def choose_hot_lists(visits: npt.NDArray[np.float64], list_bytes: Rows, *, budget_bytes: int) -> Lists:
    """The lists that go to the device, ascending: the most visited first, as long as they fit into the budget.

    A list is worth its visits times its bytes, and costs its bytes: so visits alone decide. One that was never visited
    or is empty stays on the host. Of equally visited ones the lower number goes first.
    """
    order = np.lexsort((np.arange(len(visits)), -visits))
    order = order[(visits[order] > 0) & (list_bytes[order] > 0)]
    chosen, left = [], budget_bytes
    for number in order.tolist():
        if list_bytes[number] <= left:
            chosen.append(number)
            left -= int(list_bytes[number])
    return np.array(sorted(chosen), np.int64)


def merge(parts: list[tuple[Vectors, Rows]], k: int) -> tuple[Vectors, Rows]:
    """The best k of several results, [n, any] each, best first; equal scores in the order of rows. No row is -1 in two.

    Where there are fewer than k, the row is -1 and the score the lowest there is.
    """
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    scores = np.where(rows < 0, np.float32(-np.inf), scores)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


class ListSearch(Protocol):
    """Searches some lists of an inverted index: faiss.IndexIVF on the host, and the same class as a stand-in device."""

    def search_preassigned(
        self, vectors: Vectors, k: int, lists: Lists, similarities: Vectors, /
    ) -> tuple[Vectors, Rows]:
        """The best of some lists [n, nprobe], of which -1 is skipped, with their centroids' similarities."""
        ...


@dataclass(frozen=True, slots=True)
class SplitIndex:
    """An inverted index whose hot lists another index holds too. `hot` is bool [nlist].

    Where the host's lists hold codes, `exact` has the vectors by which its finds are ranked again, `refine` times as
    many as are asked for. The device's lists hold vectors always.
    """

    host: faiss.IndexIVF
    device: ListSearch
    hot: npt.NDArray[np.bool_]
    counts: VisitCounts
    exact: faiss.Index | None = None
    refine: float = 1.0

    def search(self, vectors: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The k passages nearest to each vector, as the whole index finds them. Blocking, for several threads."""
        similarities, probed = self.host.quantizer.search(vectors, min(self.host.nprobe, self.host.nlist))
        self.counts.observe(probed)
        hot = self.hot[probed] & (probed >= 0)
        parts = []
        if hot.any():
            parts.append(self.device.search_preassigned(vectors, k, np.where(hot, probed, -1), similarities))
        if not hot.all():
            parts.append(self._host(vectors, k, np.where(hot, -1, probed), similarities))
        return merge(parts, k)

    def _host(self, vectors: Vectors, k: int, lists: Lists, similarities: Vectors) -> tuple[Vectors, Rows]:
        if self.exact is None:
            return self.host.search_preassigned(vectors, k, lists, similarities)  # type: ignore[no-any-return]
        _, rows = self.host.search_preassigned(vectors, max(k, int(k * self.refine)), lists, similarities)
        scores = np.full(rows.shape, -np.inf, np.float32)
        for place, line in enumerate(rows):
            found = np.flatnonzero(line >= 0)
            scores[place, found] = self.exact.reconstruct_batch(line[found]) @ vectors[place]
        return scores, rows


def list_bytes(index: faiss.IndexIVF) -> Rows:
    """What each list takes on the device, [nlist]: float32 vectors and their rows; 0 for an empty one."""
    sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)], np.int64)
    filled = -(-sizes // _WARP) * _WARP
    return _allocated(filled * int(index.d) * _FLOAT_BYTES) + _allocated(filled * _ID_BYTES)


def _allocated(size_bytes: Rows) -> Rows:
    grain = np.where(size_bytes > _LARGE, _PAGE, _GRAIN)
    return np.asarray(-(-size_bytes // grain) * grain, np.int64)


def device_part(index: faiss.IndexIVF, hot: Lists, *, exact: faiss.Index | None = None) -> faiss.IndexIVFFlat:
    """An index with the same centroids in which only the hot lists are filled, with vectors: to be cloned to a device.

    It takes the vectors from `exact`, or from the index itself where its lists hold them. It shares the centroids, so
    the index must outlive it. Blocking.
    """
    part = faiss.IndexIVFFlat(index.quantizer, index.d, index.nlist, index.metric_type)
    part.own_fields, part.nprobe = False, index.nprobe
    for number in hot.tolist():
        size = index.invlists.list_size(number)
        rows = np.array(faiss.rev_swig_ptr(index.invlists.get_ids(number), size))
        if exact is None:
            codes = np.array(faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size))
        else:
            codes = np.ascontiguousarray(exact.reconstruct_batch(rows), np.float32).view(np.uint8).ravel()
        part.invlists.add_entries(number, size, faiss.swig_ptr(rows), faiss.swig_ptr(codes))
        part.ntotal += size
    part.referenced_objects = [index]
    return part
