"""What is remembered, for whom, and how much of it."""

from dataclasses import replace
from sys import getsizeof

import numpy as np
import pytest

from rag_stack.metrics import QUERY_CACHE, MemoryRecorder
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.query_cache import QueryCache, ResultKey
from rag_stack.types import Hit, Passage

KEY = ResultKey((("town", "sha256:1"),), ("oil",), "", 4, Ranking())


def _hit(text: str = "x") -> tuple[Hit, ...]:
    return (Hit(Passage("p", "d", text, "", "", 0, len(text)), 0.5, "town"),)


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, versions=(("town", "sha256:2"),)),
        replace(KEY, versions=(("city", "sha256:1"),)),
        replace(KEY, versions=(("town", "sha256:1"), ("city", "sha256:1"))),
        replace(KEY, queries=("oil", "lamp")),
        replace(KEY, filters="{}"),
        replace(KEY, top_k=5),
        replace(KEY, ranking=Ranking(text_weight=0.1)),
    ],
)
def test_a_result_is_found_by_all_that_decides_it(other: ResultKey) -> None:
    cache = QueryCache(MemoryRecorder(), entries=4)
    cache.keep_result(KEY, _hit())
    assert cache.result(KEY) == _hit()
    assert cache.result(other) is None


def test_that_nothing_was_found_is_remembered_too() -> None:
    cache = QueryCache(MemoryRecorder(), entries=4)
    cache.keep_result(KEY, ())
    assert cache.result(KEY) == ()


def test_a_vector_belongs_to_its_embedder_and_cannot_be_changed() -> None:
    cache = QueryCache(MemoryRecorder(), entries=4)
    vector = np.ones(3, np.float32)
    cache.keep_vector("sha256:a", "oil", vector)
    vector[0] = 7
    found = cache.vector("sha256:a", "oil")
    assert found is not None
    assert found.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 2
    assert cache.vector("sha256:b", "oil") is None


def test_the_longest_unused_goes_first() -> None:
    cache = QueryCache(MemoryRecorder(), entries=2)
    keys = [replace(KEY, top_k=k) for k in (1, 2, 3)]
    cache.keep_result(keys[0], _hit())
    cache.keep_result(keys[1], _hit())
    cache.result(keys[0])
    cache.keep_result(keys[2], _hit())
    assert [cache.result(key) is not None for key in keys] == [True, False, True]


def test_large_results_take_the_place_of_many() -> None:
    cache = QueryCache(MemoryRecorder(), entries=100, limit_bytes=100_000)
    for k in range(1, 11):
        cache.keep_result(replace(KEY, top_k=k), _hit("x" * 30_000))
    assert sum(cache.result(replace(KEY, top_k=k)) is not None for k in range(1, 11)) == 3
    cache.keep_result(KEY, _hit("x" * 200_000))
    assert cache.result(KEY) is None


def test_hits_and_misses_are_counted() -> None:
    recorder = MemoryRecorder()
    cache = QueryCache(recorder, entries=4)
    cache.result(KEY)
    cache.keep_result(KEY, _hit())
    cache.result(KEY)
    cache.result(KEY)
    assert recorder.values(QUERY_CACHE, {"cache": "result", "outcome": "miss"}) == [1]
    assert recorder.values(QUERY_CACHE, {"cache": "result", "outcome": "hit"}) == [1, 1]


def test_all_that_a_passage_holds_counts_as_it_lies_in_memory() -> None:
    text, attributes = "漢字" * 400, {f"k{n}": "é" * 500 + f"€{n}" for n in range(16)}
    hit = Hit(Passage("p", "d", text, "題" * 500, "u" * 2000, 0, len(text), attributes), 0.5, "town")
    passage = hit.passage
    held = sum(map(getsizeof, (text, passage.title, passage.uri, *attributes.values())))
    cache = QueryCache(MemoryRecorder(), entries=100, limit_bytes=10 * held)
    for k in range(1, 21):
        cache.keep_result(replace(KEY, top_k=k), (hit,))
    kept = sum(cache.result(replace(KEY, top_k=k)) is not None for k in range(1, 21))
    assert 5 <= kept <= 10


def test_one_that_is_too_large_drives_no_others_out() -> None:
    cache = QueryCache(MemoryRecorder(), entries=100, limit_bytes=100_000)
    cache.keep_result(KEY, _hit())
    cache.keep_result(replace(KEY, top_k=5), _hit("x" * 200_000))
    assert cache.result(KEY) == _hit()
