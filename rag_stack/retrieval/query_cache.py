"""What was asked a moment ago: vectors by embedder and text, results by what was searched, in which versions, and how.

An entry is reached only by the very versions that it was found in, so a swap makes the old ones unreachable at once;
they leave as newer ones come.
"""

from dataclasses import dataclass
from sys import getsizeof
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from rag_stack.config import QUERY_CACHE_BYTES
from rag_stack.metrics import QUERY_CACHE, Recorder
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.recent import Recent
from rag_stack.types import Hit, Passage

Vector = npt.NDArray[np.float32]
ValueT = TypeVar("ValueT")

# About what the objects around a passage's texts take.
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
    """At most `entries` vectors and as many results, each in `limit_bytes`. Safe to use from several threads."""

    def __init__(self, recorder: Recorder, *, entries: int, limit_bytes: int = QUERY_CACHE_BYTES // 2) -> None:
        self._recorder = recorder
        self._vectors: Recent[tuple[str, str], Vector] = Recent(entries, limit_bytes, _vector_bytes)
        self._results: Recent[ResultKey, tuple[Hit, ...]] = Recent(entries, limit_bytes, _result_bytes)

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


def _vector_bytes(key: tuple[str, str], vector: Vector) -> int:
    return vector.nbytes + getsizeof(key[1]) + _HIT_BYTES


def _result_bytes(key: ResultKey, hits: tuple[Hit, ...]) -> int:
    asked = sum(map(getsizeof, key.queries)) + getsizeof(key.filters)
    return asked + sum(_passage_bytes(hit.passage) for hit in hits) + _HIT_BYTES


def _passage_bytes(passage: Passage) -> int:
    """As it lies in memory, where a character has up to four bytes, with all that the documents' owner has given."""
    texts = (passage.passage_id, passage.document_id, passage.text, passage.title, passage.uri)
    attributes = sum(getsizeof(key) + getsizeof(value) for key, value in passage.attributes.items())
    return sum(map(getsizeof, texts)) + attributes + getsizeof(passage.attributes) + _HIT_BYTES
