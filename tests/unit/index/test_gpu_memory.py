"""Indexes in their share of a device: copied, counted, searched, chosen anew, freed. The device is the host."""

import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import faiss
import numpy as np
import pytest

from rag_stack.config import GpuIndexConfig
from rag_stack.index.gpu_index import FIXED_BYTES, DeviceCopy, FreedError
from rag_stack.index.gpu_memory import GpuMemory, Placement
from rag_stack.index.gpu_placement import Rows, Vectors
from rag_stack.metrics import GPU_INDEX_BYTES, INDEX_SEARCHES, MemoryRecorder
from tests.host_device import FullDevice, HostDevice
from tests.vectors import clustered

D = 32
ROWS = 6_000
VECTORS = ROWS * (D * 4 + 4)  # with their norms
WAIT_S = 30.0


class Moved:
    """As an index on a device is: another object, here with the host's answers. It can break, or wait."""

    def __init__(self, index: faiss.Index) -> None:
        self.index = index
        self.broken = False
        self.inside = 0
        self.most = 0
        self.d, self.ntotal = index.d, index.ntotal

    def search(self, vectors: Vectors, k: int, *, params: object = None) -> tuple[Vectors, Rows]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if self.broken:
                raise RuntimeError("CUDA error 719 unspecified launch failure")
            scores, rows = self.index.search(vectors, k)
            return scores, rows
        finally:
            self.inside -= 1


class Device(HostDevice):
    def __init__(self) -> None:
        super().__init__()
        self.moved: list[Moved] = []

    def clone(self, index: faiss.Index) -> faiss.Index:
        self.moved.append(Moved(super().clone(index)))
        return self.moved[-1]


def _index(recipe: str, *, seed: int = 1) -> faiss.Index:
    index = faiss.index_factory(D, recipe, faiss.METRIC_INNER_PRODUCT)
    index.train(clustered(ROWS, D, spread=1.5))
    index.add(clustered(ROWS, D, seed=seed, spread=1.5))
    if "IVF" in recipe:
        index.nprobe = 8
    return index


def _memory(
    device: HostDevice | None, *, stores: int = 1, budget_bytes: int = 1 << 30
) -> tuple[GpuMemory, MemoryRecorder]:
    recorder = MemoryRecorder()
    return GpuMemory(device, budget_bytes=budget_bytes, stores=stores, recorder=recorder), recorder


def _placed(memory: GpuMemory, index: faiss.Index, *, like: Placement | None = None) -> Placement:
    placement = memory.place(index, like=like)
    assert placement is not None
    return placement


QUERIES = clustered(40, D, seed=3, spread=1.5)


def _same(placement: Placement, index: faiss.Index) -> bool:
    found = placement.answer(QUERIES, 10, filtered=False)
    return found is not None and bool(np.array_equal(found[1], index.search(QUERIES, 10)[1]))


def test_what_is_placed_answers_and_is_counted() -> None:
    index, (memory, recorder) = _index("Flat"), _memory(Device())
    placement = _placed(memory, index)
    assert _same(placement, index)
    assert placement.answer(QUERIES, 10, filtered=True) is None
    assert placement.answer(QUERIES, 2049, filtered=False) is None, "FAISS has no such k on a device"
    assert recorder.values(INDEX_SEARCHES, {"place": "device"}) == [1]
    assert recorder.values(INDEX_SEARCHES, {"place": "host"}) == [1, 1]
    assert str(memory) == f"1 on the device, {(VECTORS + FIXED_BYTES) / 1e9:.3f} of 1.074 GB"
    placement.close()
    assert str(memory).startswith("0 on the device, 0.000")
    assert recorder.values(GPU_INDEX_BYTES)[-1] == 0


def test_a_new_version_fits_beside_the_old_one_and_a_third_does_not() -> None:
    size = VECTORS + FIXED_BYTES
    memory, _ = _memory(Device(), budget_bytes=2 * size)
    old, new = _placed(memory, _index("Flat")), _placed(memory, _index("Flat", seed=2))
    assert memory.place(_index("Flat", seed=4)) is None
    old.close()
    old.close()
    third = _placed(memory, _index("Flat", seed=4))
    third.close()
    new.close()
    assert str(memory).startswith("0 on the device, 0.000")


def test_stores_share_the_budget() -> None:
    memory, _ = _memory(Device(), stores=2, budget_bytes=2 * (VECTORS + FIXED_BYTES))
    assert memory.place(_index("Flat")) is None


def test_one_search_of_a_copy_at_a_time() -> None:
    index, device = _index("Flat"), Device()
    placement = _placed(_memory(device)[0], index)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: _same(placement, index), range(64)))
    assert device.moved[0].most == 1


def test_a_copy_is_freed_after_its_last_search() -> None:
    inside, go_on = Event(), Event()

    class Slow(Moved):
        def search(self, vectors: Vectors, k: int, *, params: object = None) -> tuple[Vectors, Rows]:
            inside.set()
            assert go_on.wait(WAIT_S)
            return super().search(vectors, k, params=params)

    copy = DeviceCopy(Slow(_index("Flat")), rows=ROWS)
    with ThreadPoolExecutor(2) as pool:
        search = pool.submit(copy.search, QUERIES, 10)
        assert inside.wait(WAIT_S)
        freed = pool.submit(copy.free)
        assert not freed.done()
        go_on.set()
        assert search.result(WAIT_S)[1].shape == (40, 10)
        freed.result(WAIT_S)
    with pytest.raises(FreedError):
        copy.search(QUERIES, 10)


def test_a_device_that_fails_is_left_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    index, device = _index("Flat"), Device()
    memory, _ = _memory(device)
    placement = _placed(memory, index)
    device.moved[0].broken = True
    with caplog.at_level(logging.WARNING):
        assert placement.answer(QUERIES, 10, filtered=False) is None
        assert placement.answer(QUERIES, 10, filtered=False) is None
    assert [record.getMessage().count("launch failure") for record in caplog.records] == [1]
    assert str(memory).startswith("0 on the device, 0.000")
    placement.close()
    assert str(memory).startswith("0 on the device, 0.000"), "given back once"


def test_what_makes_no_sense_is_not_placed(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Device):
        def clone(self, index: faiss.Index) -> faiss.Index:
            moved = super().clone(index)
            moved.broken = True
            return moved

    memory, _ = _memory(Broken())
    with caplog.at_level(logging.WARNING):
        assert memory.place(_index("Flat")) is None
    assert [record.getMessage().count("makes no sense") for record in caplog.records] == [1]
    assert str(memory).startswith("0 on the device, 0.000")


def test_a_full_device_takes_nothing_of_the_budget() -> None:
    memory, _ = _memory(FullDevice())
    assert memory.place(_index("Flat")) is None
    assert str(memory).startswith("0 on the device, 0.000")


def _third_of_lists() -> int:
    """A budget of which one version's half holds a third of the lists."""
    return 2 * (FIXED_BYTES + 2 * 64 * D * 4 + VECTORS // 3)


def _chosen(placement: Placement) -> None:
    """Once the choice that is under way has been made."""
    if (thread := placement._choosing) is not None:
        thread.join(WAIT_S)


def test_lists_become_hot_by_queries_and_stay_so_over_a_swap() -> None:
    index, device = _index("IVF64,Flat"), Device()
    memory, _ = _memory(device, budget_bytes=_third_of_lists())
    placement = _placed(memory, index)
    assert device.moved == [], "nothing is known of the visits"
    for _ in range(14):
        assert _same(placement, index)
        _chosen(placement)
    assert 0 < device.moved[0].ntotal < ROWS
    assert _same(placement, index)
    before = str(memory)

    grown = faiss.clone_index(index)
    grown.add(clustered(100, D, seed=9, spread=1.5))
    after = _placed(memory, grown, like=placement)
    assert device.moved[1].ntotal > 0, "the same lists: what was hot is hot"
    placement.close()
    assert _same(after, grown)
    assert str(memory).split(",")[0] == before.split(",")[0] == "1 on the device"

    trained_anew = faiss.index_factory(D, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    trained_anew.train(clustered(ROWS, D, seed=7, spread=1.5))
    trained_anew.add(clustered(ROWS, D, seed=7, spread=1.5))
    other = _placed(memory, trained_anew, like=after)
    assert len(device.moved) == 2, "another list of the same number is not hot"
    assert other.counts is not after.counts


def test_lists_are_not_copied_again_while_the_same_are_hot() -> None:
    index, device = _index("IVF64,Flat"), Device()
    placement = _placed(_memory(device, budget_bytes=_third_of_lists())[0], index)
    for _ in range(60):
        placement.answer(QUERIES, 10, filtered=False)
        _chosen(placement)
    assert len(device.moved) == 1
    others = clustered(400, D, seed=31, spread=1.5)
    far = others[np.argsort((others @ QUERIES.T).max(axis=1))[:40]]
    for _ in range(200):
        placement.answer(far, 10, filtered=False)
        _chosen(placement)
    assert len(device.moved) >= 2, "other questions have other hot lists"
    assert _same(placement, index)


def test_closing_waits_for_a_choice_that_is_being_made() -> None:
    index, begun, go_on = _index("IVF64,Flat"), Event(), Event()

    class Slow(Device):
        def clone(self, index: faiss.Index) -> faiss.Index:
            begun.set()
            assert go_on.wait(WAIT_S)
            return super().clone(index)

    memory, _ = _memory(Slow(), budget_bytes=_third_of_lists())
    placement = _placed(memory, index)
    while not begun.is_set():
        placement.answer(QUERIES, 10, filtered=False)
    assert placement.answer(QUERIES, 10, filtered=False) is None, "the host answers meanwhile"
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(placement.close)
        go_on.set()
        closed.result(WAIT_S)
    assert str(memory).startswith("0 on the device, 0.000")


def test_a_release_without_gpu_index_has_none() -> None:
    assert GpuMemory.open(GpuIndexConfig(), stores=1, recorder=MemoryRecorder()) is None


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPUs")
def test_a_faiss_without_gpus_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        memory = GpuMemory.open(GpuIndexConfig(enabled=True), stores=1, recorder=MemoryRecorder())
        assert memory is not None
        assert memory.place(_index("Flat")) is None
        assert memory.place(_index("Flat")) is None
    assert len(caplog.records) == 1
    assert "faiss-gpu-cuvs" in caplog.text
    assert str(memory) == "on the host, FAISS has no device"
