"""Filtered searches against brute force: real FAISS indexes over vectors in topics, as text makes them."""

import time
from collections.abc import Callable, Iterator
from functools import cache

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from rag_stack.index.reader import set_search_threads
from rag_stack.index.selector import Allowed, Rows, Vectors, search_selected, similarities

ROWS, D, K, QUERIES, TOPICS = 12_000, 32, 10, 40, 24
RECIPES = {
    "Flat": "",
    "SQ8": "",
    "HNSW32": "efSearch=64",
    "HNSW32,SQ8": "efSearch=64",
    "IVF64,Flat": "nprobe=12",
    "IVF64_HNSW16,Flat": "nprobe=12",
    "IVF64,PQ8x4fs,RFlat": "nprobe=12,k_factor_rf=60",
    "OPQ8,IVF64,PQ8x4fs,RFlat": "nprobe=12,k_factor_rf=60",
    "RR32,IVF64,Flat": "nprobe=12",
    "RR32,HNSW32": "efSearch=64",
}
_SHARES: dict[str, Callable[[npt.NDArray[np.float64]], Allowed]] = {
    "1": lambda draw: draw <= np.sort(draw)[0],
    "10": lambda draw: draw <= np.sort(draw)[9],
    "1 %": lambda draw: draw < 0.01,
    "5 %": lambda draw: draw < 0.05,
    "30 %": lambda draw: draw < 0.3,
    "all": lambda draw: draw < 2.0,
    "three topics": lambda _: data()[1] < 3,
    "a third of the topics": lambda _: data()[1] < TOPICS // 3,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a server's searches; many threads on few cores wait for each other."""
    before = faiss.omp_get_max_threads()
    set_search_threads(1)
    yield
    set_search_threads(before)


def _unit(vectors: npt.NDArray[np.float64]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


@cache
def data() -> tuple[Vectors, npt.NDArray[np.int64], Vectors]:
    """Vectors, the topic of each, and queries."""
    rng = np.random.default_rng(7)
    centres = _unit(rng.standard_normal((TOPICS, D)))
    topics = rng.integers(0, TOPICS, ROWS)
    asked = rng.integers(0, TOPICS, QUERIES)

    def around(chosen: npt.NDArray[np.int64]) -> Vectors:
        return _unit(centres[chosen] + 1.2 * _unit(rng.standard_normal((len(chosen), D))))

    return around(topics), topics, around(asked)


@cache
def index(recipe: str) -> faiss.Index:
    vectors = data()[0]
    built = faiss.index_factory(D, recipe, faiss.METRIC_INNER_PRODUCT)
    # A rotation is learnt in fifty rounds, of which each takes a while.
    built.train(vectors[: 800 if "OPQ" in recipe else 4000])
    built.add(vectors)
    if RECIPES[recipe]:
        faiss.ParameterSpace().set_index_parameters(built, RECIPES[recipe])
    return built


def _allowed(share: str) -> Allowed:
    return _SHARES[share](np.random.default_rng(3).random(ROWS))


def _truth(queries: Vectors, allowed: Allowed, k: int) -> Rows:
    rows = np.flatnonzero(allowed)
    scores = queries @ data()[0][rows].T
    return rows[np.argsort(-scores, axis=1, kind="stable")[:, :k]]


def _recall(found: Rows, truth: Rows) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


@pytest.mark.parametrize("share", _SHARES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_few_rows_are_found_exactly(recipe: str, share: str) -> None:
    allowed, queries = _allowed(share), data()[2]
    _, rows = search_selected(index(recipe), queries, K, allowed)
    assert set(rows.ravel().tolist()) <= {-1, *np.flatnonzero(allowed).tolist()}
    recall = _recall(rows, _truth(queries, allowed, K))
    # Its own vectors are rounded.
    assert recall >= (0.93 if "SQ8" in recipe else 0.9999), recall


@pytest.mark.parametrize("share", ["1 %", "5 %", "30 %", "all", "three topics", "a third of the topics"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_many_rows_are_found_as_well_as_without_a_filter(recipe: str, share: str) -> None:
    allowed, queries = _allowed(share), data()[2]
    started = time.thread_time()
    _, rows = search_selected(index(recipe), queries, K, allowed, few_rows=100)
    assert time.thread_time() - started < 0.02 * QUERIES, "a scan of all rows takes a tenth of it"
    assert set(rows.ravel().tolist()) <= {-1, *np.flatnonzero(allowed).tolist()}
    recall = _recall(rows, _truth(queries, allowed, K))
    assert recall >= (0.93 if "SQ8" in recipe else 0.95), recall


@pytest.mark.parametrize("recipe", RECIPES)
def test_scores_are_best_first_and_places_that_stay_empty_are_marked(recipe: str) -> None:
    allowed = np.zeros(ROWS, np.bool_)
    allowed[[5, 700, 11_999]] = True
    queries = data()[2][:3]
    scores, rows = search_selected(index(recipe), queries, 5, allowed)
    assert (scores.shape, rows.shape) == ((3, 5), (3, 5))
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert [sorted(each) for each in rows[:, :3].tolist()] == [[5, 700, 11_999]] * 3
    assert (rows[:, 3:] == -1).all()
    assert (np.diff(scores[:, :3], axis=1) <= 0).all()
    expected = np.take_along_axis(queries @ data()[0].T, rows[:, :3], 1)
    np.testing.assert_allclose(scores[:, :3], expected, atol=0.02 if "SQ8" in recipe else 1e-4)


def test_more_than_a_block_of_rows_is_merged() -> None:
    vectors = np.tile(data()[0], (80, 1))
    flat = faiss.IndexFlatIP(D)
    flat.add(vectors)
    allowed = np.zeros(len(vectors), np.bool_)
    allowed[np.random.default_rng(1).choice(len(vectors), 4700, replace=False)] = True
    rows = np.flatnonzero(allowed)
    scores, found = search_selected(flat, data()[2], K, allowed)
    expected = np.sort(data()[2] @ vectors[rows].T, axis=1)[:, ::-1][:, :K]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert set(found.ravel().tolist()) <= set(rows.tolist())


def test_equal_scores_stand_in_the_order_of_rows() -> None:
    flat = faiss.IndexFlatIP(D)
    flat.add(np.tile(data()[0][:1], (4000, 1)))
    allowed = np.zeros(4000, np.bool_)
    allowed[[30, 10, 20]] = True
    _, rows = search_selected(flat, data()[0][:1], 3, allowed)
    assert rows.tolist() == [[10, 20, 30]]


@pytest.mark.parametrize("recipe", RECIPES)
def test_some_rows_are_compared_in_their_own_order(recipe: str) -> None:
    rows = np.array([11_999, 5, 700, 6, 0])
    queries = data()[2][:3]
    found = similarities(index(recipe), queries, rows)
    assert (found.shape, found.dtype) == ((3, 5), np.float32)
    np.testing.assert_allclose(found, queries @ data()[0][rows].T, atol=0.02 if "SQ8" in recipe else 1e-4)
    assert similarities(index(recipe), queries, rows[:0]).shape == (3, 0)


@pytest.mark.parametrize("recipe", ["Flat", "IVF64,PQ8x4fs,RFlat"])
def test_comparing_some_rows_reads_no_others(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = index(recipe)
    for kind in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexIVF, faiss.IndexRefineFlat, type(built)):
        monkeypatch.setattr(kind, "search", lambda *_, **__: pytest.fail("the index was searched"))
    similarities(built, data()[2][:1], np.arange(50))
