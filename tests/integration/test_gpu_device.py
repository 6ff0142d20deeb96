"""An index on a real device, where FAISS has one. What is decided without a device is tested in tests/unit/index."""

import logging
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from rag_stack.config import GpuIndexConfig
from rag_stack.index.gpu_index import FIXED_BYTES, SCRATCH_BYTES, gpu_device, place, plan
from rag_stack.index.gpu_memory import GpuMemory, Placement
from rag_stack.index.gpu_placement import Rows, Vectors, VisitCounts
from rag_stack.metrics import MemoryRecorder
from tests.vectors import clustered, index_of

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(gpu_device(0) is None, reason="no FAISS with GPUs, or no GPU")

D, ROWS, K = 64, 60_000, 10
BUDGET = 1 << 30
# On the device sums are added in another order: what is equally near comes in another one.
TIES = 0.995


@pytest.fixture(autouse=True, scope="module")
def _begun() -> None:
    """Kernels are loaded at their first use, and stay: no test shall count those of another kind of index."""
    for recipe, cagra in (("Flat", False), ("IVF256,Flat", False), ("Flat", True)):
        placed = place(_index(recipe), gpu_device(0), budget_bytes=BUDGET, cagra=cagra)
        assert placed is not None
        placed.search(_queries(), K)


def _index(recipe: str) -> faiss.Index:
    return index_of(recipe, rows=ROWS, dimension=D, nprobe=16)


def _queries(count: int = 200) -> Vectors:
    return clustered(count, D, seed=3, spread=1.5)


def _same(found: Rows, expected: Rows) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    )


def _free_bytes() -> int:
    return int(torch.cuda.mem_get_info(0)[0])


def _memory(budget: int = BUDGET) -> GpuMemory:
    config = GpuIndexConfig(enabled=True, memory_bytes=budget)
    memory = GpuMemory.open(config, stores=1, recorder=MemoryRecorder())
    assert memory is not None
    return memory


def _placed(memory: GpuMemory, index: faiss.Index) -> Placement:
    placement = memory.place(index)
    assert placement is not None
    return placement


def _answer(placement: Placement, queries: Vectors) -> Rows:
    found = placement.answer(queries, K, filtered=False)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("recipe", "kind"), [("Flat", "flat"), ("IVF256,Flat", "ivf"), ("HNSW16", "flat")])
def test_the_device_finds_what_the_host_finds(recipe: str, kind: str) -> None:
    index = _index(recipe)
    placed = place(index, gpu_device(0), budget_bytes=BUDGET)
    assert placed is not None
    assert placed.plan.kind == kind
    exact = faiss.IndexFlatIP(D)
    exact.add(clustered(ROWS, D, spread=1.5))
    expected = (exact if kind == "flat" else index).search(_queries(), K)
    scores, rows = placed.search(_queries(), K)
    assert _same(rows, expected[1]) >= TIES
    np.testing.assert_allclose(scores, expected[0], atol=1e-4)


@pytest.mark.parametrize("k", [10, 200])
def test_a_graph_on_the_device_finds_nearly_all(k: int) -> None:
    index = _index("Flat")
    placed = place(index, gpu_device(0), budget_bytes=BUDGET, cagra=True)
    assert placed is not None
    assert placed.plan.kind == "cagra"
    assert _same(placed.search(_queries(), k)[1], index.search(_queries(), k)[1]) >= 0.95


@pytest.mark.parametrize("recipe", ["IVF256,Flat", "IVF256,PQ32x4fs,RFlat"])
def test_hot_lists_and_the_host_answer_as_one(recipe: str) -> None:
    index = _index(recipe)
    host = faiss.extract_index_ivf(index)
    counts = VisitCounts(256)
    counts.observe(host.quantizer.search(_queries(), 16)[1])
    fixed = FIXED_BYTES + 2 * 256 * D * 4
    placed = place(index, gpu_device(0), budget_bytes=fixed + ROWS * D * 4 // 3, counts=counts)
    assert placed is not None
    assert placed.plan.kind == "hot_lists"
    assert placed.hot is not None
    assert 10 < len(placed.hot) < 250
    exact = faiss.IndexIVFFlat(host.quantizer, D, 256, faiss.METRIC_INNER_PRODUCT)
    exact.add(clustered(ROWS, D, spread=1.5))
    exact.nprobe = 16
    rows, expected = placed.search(_queries(), K)[1], exact.search(_queries(), K)[1]
    # Where lists hold codes, the device has the vectors instead, so that less is lost than on the host alone.
    assert _same(rows, expected) >= (
        TIES if recipe.endswith("256,Flat") else _same(index.search(_queries(), K)[1], expected)
    )


def test_what_does_not_fit_stays_on_the_host_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    index = _index("Flat")
    taken = torch.empty(_free_bytes() - (48 << 20), dtype=torch.uint8, device="cuda:0")
    try:
        with caplog.at_level(logging.WARNING):
            assert place(index, gpu_device(0), budget_bytes=BUDGET) is None
    finally:
        del taken
        torch.cuda.empty_cache()
    assert len(caplog.records) == 1
    assert "the device refuses" in caplog.text
    assert place(index, gpu_device(0), budget_bytes=BUDGET) is not None


def test_a_version_that_goes_gives_its_memory_back() -> None:
    memory = _memory()
    index = _index("Flat")
    _placed(memory, index).close()
    before = _free_bytes()
    for _ in range(5):
        placement = _placed(memory, index)
        _answer(placement, _queries())
        placement.close()
        assert placement.answer(_queries(), K, filtered=False) is None
    assert before - _free_bytes() < FIXED_BYTES


def test_threads_that_search_at_once_find_the_same() -> None:
    index = _index("IVF256,Flat")
    expected = index.search(_queries(), K)[1]
    placement = _placed(_memory(), index)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: _answer(placement, _queries()), range(40)):
            assert _same(found, expected) >= TIES
    placement.close()


def test_hot_lists_are_chosen_by_what_is_asked() -> None:
    index = _index("IVF256,Flat")
    fixed = FIXED_BYTES + 2 * 256 * D * 4
    # Half a store's share is what one version gets.
    memory = _memory(2 * (fixed + ROWS * D * 4 // 3))
    placement = _placed(memory, index)
    expected = index.search(_queries(), K)[1]
    before = _free_bytes()
    for _ in range(5):
        assert _same(_answer(placement, _queries()), expected) >= TIES
        # While lists are copied, the host answers.
        if (choice := placement._choosing) is not None:
            choice.join()
    assert before - _free_bytes() > SCRATCH_BYTES, "hot lists are on the device now"
    assert _same(_answer(placement, _queries()), expected) >= TIES
    placement.close()


@pytest.mark.parametrize(("recipe", "cagra"), [("Flat", False), ("Flat", True), ("IVF256,Flat", False)])
def test_no_more_is_taken_than_was_planned(recipe: str, cagra: bool) -> None:
    index = _index(recipe)
    before = _free_bytes()
    placed = place(index, gpu_device(0), budget_bytes=BUDGET, cagra=cagra)
    assert placed is not None
    placed.search(_queries(32), K)
    assert before - _free_bytes() <= plan(index, budget_bytes=BUDGET, cagra=cagra).size_bytes
