"""What goes to a device, and what happens where it refuses. The device here is the host: FAISS without GPUs."""

import logging

import faiss
import numpy as np
import pytest

from rag_stack.index.gpu_index import CAGRA_BYTES, FIXED_BYTES, OnDevice, gpu_device, place, plan
from rag_stack.index.gpu_placement import Rows, Vectors, VisitCounts, list_bytes
from tests.host_device import FullDevice, HostDevice
from tests.vectors import clustered, index_of

D = 32
ROWS = 6_000
VECTORS = ROWS * (D * 4 + 4)  # with their norms


def _index(recipe: str) -> faiss.Index:
    index = index_of(recipe, rows=ROWS, dimension=D, nprobe=8)
    if "R" in recipe:
        index.k_factor = 4
    return index


def _recall(found: OnDevice, index: faiss.Index) -> float:
    queries = clustered(50, D, seed=3, spread=1.5)
    rows, expected = found.search(queries, 10)[1], index.search(queries, 10)[1]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]))


@pytest.mark.parametrize(
    ("recipe", "budget", "cagra", "kind", "size"),
    [
        ("Flat", VECTORS + FIXED_BYTES, False, "flat", VECTORS + FIXED_BYTES),
        ("Flat", VECTORS + FIXED_BYTES - 1, False, "none", 0),
        ("Flat", 1 << 30, True, "cagra", VECTORS + ROWS * 64 * 4 + FIXED_BYTES + CAGRA_BYTES),
        ("Flat", VECTORS + FIXED_BYTES, True, "flat", VECTORS + FIXED_BYTES),
        ("HNSW16", 1 << 30, False, "flat", VECTORS + FIXED_BYTES),
        ("IVF64,PQ32x4fs,RFlat", 1 << 30, False, "flat", VECTORS + FIXED_BYTES),
        ("IVF64,PQ32x4fs,RFlat", FIXED_BYTES + 2 * 64 * D * 4 + 1000, False, "hot_lists", None),
        ("IVF64,PQ32x4fs,Refine(SQ8)", 1 << 30, False, "hot_lists", None),
        ("IVF64,Flat", 1 << 30, False, "ivf", None),
        ("IVF64,Flat", FIXED_BYTES + VECTORS, False, "hot_lists", FIXED_BYTES + VECTORS),
        ("IVF64,Flat", FIXED_BYTES, False, "none", 0),
        ("IVF64,SQ8", 1 << 30, False, "none", 0),
        ("PCA16,IVF64,Flat", 1 << 30, False, "none", 0),
    ],
)
def test_what_goes_to_the_device_is_counted_before(
    recipe: str, budget: int, cagra: bool, kind: str, size: int | None
) -> None:
    planned = plan(_index(recipe), budget_bytes=budget, cagra=cagra)
    assert planned.kind == kind
    assert planned.size_bytes <= budget
    assert size is None or planned.size_bytes == size
    assert bool(planned.reason) == (kind == "none")


@pytest.mark.parametrize("recipe", ["Flat", "IVF64,Flat"])
@pytest.mark.parametrize("cagra", [False, True])
def test_what_is_placed_finds_the_same(recipe: str, cagra: bool) -> None:
    index, device = _index(recipe), HostDevice()
    placed = place(index, device, budget_bytes=1 << 30, cagra=cagra)
    assert placed is not None
    assert len(device.cloned) == 1
    assert _recall(placed, index) >= (0.95 if cagra else 1.0)


def test_hot_lists_fill_the_budget_and_find_the_same() -> None:
    index, device, counts = _index("IVF64,Flat"), HostDevice(), VisitCounts(64)
    counts.observe(index.quantizer.search(clustered(200, D, seed=3, spread=1.5), 8)[1])
    room = VECTORS // 3
    placed = place(index, device, budget_bytes=FIXED_BYTES + 2 * 64 * D * 4 + room, counts=counts)
    assert placed is not None
    assert placed.hot is not None
    assert placed.plan.kind == "hot_lists"
    lists = list_bytes(device.cloned[0])
    assert room * 0.8 < lists.sum() <= room
    assert lists.sum() > device.cloned[0].ntotal * (D * 4 + 8), "lists are filled up"
    assert _recall(placed, index) == 1
    assert placed.counts is counts


def test_without_visits_no_list_is_hot_and_all_is_found() -> None:
    index, device = _index("IVF64,Flat"), HostDevice()
    placed = place(index, device, budget_bytes=FIXED_BYTES + VECTORS)
    assert placed is not None
    assert device.cloned == []
    assert _recall(placed, index) == 1
    assert placed.counts is not None
    assert placed.counts.visits().sum() > 0, "these queries were counted"


def test_a_device_that_refuses_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    index = _index("IVF64,Flat")
    with caplog.at_level(logging.WARNING):
        assert place(index, FullDevice(), budget_bytes=1 << 30) is None
        assert place(index, None, budget_bytes=1 << 30) is None
        assert place(index, HostDevice(), budget_bytes=1) is None
    refused, without, small = [record.getMessage() for record in caplog.records]
    assert "out of memory" in refused
    assert "built without GPUs" in without
    assert "centroids and FAISS itself" in small


def test_a_device_with_too_little_left_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    class Taken(HostDevice):
        def free_bytes(self) -> int:
            return VECTORS

    device = Taken()
    with caplog.at_level(logging.WARNING):
        assert place(_index("Flat"), device, budget_bytes=1 << 30) is None
    assert device.cloned == []
    assert [record.getMessage().count("0.001 GB left") for record in caplog.records] == [1]


def test_a_graph_says_how_many_it_finds() -> None:
    placed = place(_index("Flat"), HostDevice(), budget_bytes=1 << 30, cagra=True)
    assert placed is not None
    assert placed.largest_k == 256


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPUs")
def test_a_faiss_without_gpus_has_no_device() -> None:
    assert gpu_device(0) is None


def test_what_is_not_there_is_no_row() -> None:
    class Odd(HostDevice):
        """Numbers an absent neighbour as cuVS does."""

        def clone(self, index: faiss.Index) -> faiss.Index:
            class Numbered:
                def search(self, vectors: Vectors, k: int, *, params: object = None) -> tuple[Vectors, Rows]:
                    scores, rows = index.search(vectors, k)
                    rows[:, -1], scores[:, -1] = np.iinfo(np.int64).max, 0.5
                    return scores, rows

            return Numbered()

    index = _index("Flat")
    placed = place(index, Odd(), budget_bytes=1 << 30)
    assert placed is not None
    scores, rows = placed.search(clustered(3, D, seed=3), 4)
    assert (rows[:, -1] == -1).all()
    assert np.isneginf(scores[:, -1]).all()
    assert (rows[:, :-1] >= 0).all()
