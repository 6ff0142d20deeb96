"""Hot lists: which they are, and a search over two parts that equals the whole. Two CPU indexes stand for the parts."""

import time

import faiss
import numpy as np
import pytest

from rag_stack.index.gpu_placement import (
    SplitIndex,
    VisitCounts,
    choose_hot_lists,
    device_part,
    list_bytes,
    merge,
)
from tests.vectors import clustered

D = 32


def _index(recipe: str, nprobe: int = 8) -> faiss.Index:
    index = faiss.index_factory(D, recipe, faiss.METRIC_INNER_PRODUCT)
    vectors = clustered(6_000, D, spread=1.5)
    index.train(vectors)
    index.add(vectors)
    faiss.extract_index_ivf(index).nprobe = nprobe
    return index


def _queries(count: int = 60) -> np.ndarray:
    return clustered(count, D, seed=3, spread=1.5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_two_parts_find_what_the_whole_finds(share: float) -> None:
    whole = _index("IVF64,Flat")
    counts = VisitCounts(64)
    counts.observe(whole.quantizer.search(_queries(), 8)[1])
    sizes = list_bytes(whole)
    hot = choose_hot_lists(counts.visits(), sizes, budget_bytes=int(share * sizes.sum()))
    part = device_part(whole, hot)
    assert part.ntotal * (D * 4 + 8) <= sizes[hot].sum() <= share * sizes.sum()
    mask = np.isin(np.arange(64), hot)
    split = SplitIndex(whole, part, mask, counts)
    scores, rows = split.search(_queries(), 10)
    expected_scores, expected_rows = whole.search(_queries(), 10)
    assert rows.tolist() == expected_rows.tolist()
    assert np.allclose(scores, expected_scores, atol=1e-6)
    one_scores, one_rows = split.search(_queries()[:1], 10)
    assert one_rows.tolist() == rows[:1].tolist()
    assert np.allclose(one_scores, scores[:1], atol=1e-6)


@pytest.mark.parametrize("ranked", ["RFlat", "Refine(SQ8)"])
def test_lists_of_codes_find_no_less_with_vectors_on_the_device(ranked: str) -> None:
    whole = _index(f"IVF64,PQ32x4fs,{ranked}")
    whole.k_factor = 4
    host = faiss.downcast_index(whole.base_index)
    exact = faiss.downcast_index(whole.refine_index)
    hot = np.arange(0, 64, 2)
    part = device_part(host, hot, exact=exact)
    split = SplitIndex(host, part, np.isin(np.arange(64), hot), VisitCounts(64), exact, whole.k_factor)
    truth = faiss.IndexFlatIP(D)
    truth.add(clustered(6_000, D, spread=1.5))
    nearest = truth.search(_queries(), 10)[1]
    found = [
        np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), nearest.tolist(), strict=True)])
        for rows in (split.search(_queries(), 10)[1], whole.search(_queries(), 10)[1])
    ]
    assert found[0] >= found[1] > 5


def test_fewer_than_were_asked_for_end_with_none() -> None:
    whole = _index("IVF64,Flat", nprobe=1)
    split = SplitIndex(whole, device_part(whole, np.arange(32)), np.arange(64) < 32, VisitCounts(64))
    _, rows = split.search(_queries(5), 3_000)
    assert rows.shape == (5, 3_000)
    assert rows.tolist() == whole.search(_queries(5), 3_000)[1].tolist()
    assert (rows[:, -1] == -1).all()


def test_the_most_visited_lists_that_fit_are_hot() -> None:
    visits = np.array([5.0, 9.0, 9.0, 1.0, 0.0, 7.0])
    sizes = np.array([10, 50, 20, 10, 1, 0])
    assert choose_hot_lists(visits, sizes, budget_bytes=1_000).tolist() == [0, 1, 2, 3]
    assert choose_hot_lists(visits, sizes, budget_bytes=60).tolist() == [0, 1]
    assert choose_hot_lists(visits, sizes, budget_bytes=49).tolist() == [0, 2, 3]
    assert choose_hot_lists(visits, sizes, budget_bytes=0).tolist() == []


def test_old_visits_fade() -> None:
    counts = VisitCounts(3, half_life=10)
    counts.observe(np.array([[0, -1]] * 100))
    before = counts.visits()
    counts.observe(np.array([[1, 2]] * 10))
    assert counts.visits()[0] == pytest.approx(before[0] / 2)
    assert counts.visits()[1] == counts.visits()[2] > 0
    for _ in range(20):
        counts.observe(np.array([[2]] * 100))
    assert np.isfinite(counts.visits()).all()
    assert counts.visits()[0] < 1e-9 < counts.visits()[2]


def test_equal_scores_come_in_the_order_of_rows() -> None:
    scores, rows = merge(
        [
            (np.array([[0.5, 0.4]], np.float32), np.array([[7, 3]])),
            (np.array([[0.5, 0.9]], np.float32), np.array([[2, -1]])),
        ],
        3,
    )
    assert rows.tolist() == [[2, 7, 3]]
    assert scores[0].tolist() == pytest.approx([0.5, 0.5, 0.4])


def test_counting_visits_takes_microseconds() -> None:
    counts = VisitCounts(4096)
    probed = np.random.default_rng(0).permutation(4096)[None, :64]
    counts.observe(probed)
    took = []
    for _ in range(50):
        began = time.thread_time()
        for _ in range(20):
            counts.observe(probed)
        took.append((time.thread_time() - began) / 20)
    print(f"{min(took) * 1e6:.1f} microseconds a query")
    assert min(took) < 50e-6
