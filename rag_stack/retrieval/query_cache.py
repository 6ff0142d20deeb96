"""What was asked a moment ago: vectors by embedder and text, results by what was searched, in which versions, and how.

An entry is reached only by the very versions that it was found in, so a swap makes the old ones unreachable at once;
they leave as newer ones come.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from rag_stack.metrics import QUERY_CACHE, Recorder
from rag_stack.retrieval.fusion import Ranking
from rag_stack.types import Hit

Vector = npt.NDArray[np.float32]
KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")

_LIMIT_BYTES: Final = 64 << 20
# About what the objects around a passage's text take.
_HIT_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class ResultKey:
    """What decides a result. `versions`: each store with the digest of its index version's manifest."""

    versions: tuple[tuple[str, str], ...]
    queries: tuple[str, ...]
    filters: str
    top_k: int
    ranking: Ranking


class QueryCache:
    """At most `entries` vectors and as many results, each in 64 MiB. Safe to use from several threads."""

    def __init__(self, recorder: Recorder, *, entries: int, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._recorder = recorder
        self._vectors: _Recent[tuple[str, str], Vector] = _Recent(entries, limit_bytes, _vector_bytes)
        self._results: _Recent[ResultKey, tuple[Hit, ...]] = _Recent(entries, limit_bytes, _result_bytes)

    def vector(self, embedder: str, text: str) -> Vector | None:
        """The vector of a text by an embedder's digest; it is shared, so nobody may change it."""
        return self._counted("vector", self._vectors.get((embedder, text)))

    def keep_vector(self, embedder: str, text: str, vector: Vector) -> None:
        """Remember a vector, a copy of it."""
        kept = vector.copy()
        kept.setflags(write=False)
        self._vectors.put((embedder, text), kept)

    def result(self, key: ResultKey) -> tuple[Hit, ...] | None:
        """What was found."""
        return self._counted("result", self._results.get(key))

    def keep_result(self, key: ResultKey, hits: tuple[Hit, ...]) -> None:
        """Remember what was found."""
        self._results.put(key, hits)

    def _counted(self, cache: str, found: ValueT | None) -> ValueT | None:
        self._recorder.record(QUERY_CACHE, 1, {"cache": cache, "outcome": "miss" if found is None else "hit"})
        return found


class _Recent(Generic[KeyT, ValueT]):
    """The latest used values, bounded by their number and by their size."""

    def __init__(self, entries: int, limit_bytes: int, size_of: Callable[[KeyT, ValueT], int]) -> None:
        self._entries = entries
        self._limit_bytes = limit_bytes
        self._size_of = size_of
        self._values: OrderedDict[KeyT, ValueT] = OrderedDict()
        self._size_bytes = 0
        self._lock = Lock()

    def get(self, key: KeyT) -> ValueT | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: KeyT, value: ValueT) -> None:
        with self._lock:
            if key in self._values:
                self._size_bytes -= self._size_of(key, self._values.pop(key))
            self._values[key] = value
            self._size_bytes += self._size_of(key, value)
            while len(self._values) > self._entries or self._size_bytes > self._limit_bytes:
                self._size_bytes -= self._size_of(*self._values.popitem(last=False))


def _vector_bytes(key: tuple[str, str], vector: Vector) -> int:
    return vector.nbytes + len(key[1]) + _HIT_BYTES


def _result_bytes(key: ResultKey, hits: tuple[Hit, ...]) -> int:
    asked = sum(map(len, key.queries)) + len(key.filters)
    return asked + sum(len(hit.passage.text) + _HIT_BYTES for hit in hits) + _HIT_BYTES
