"""An open index on the device beside its mapping: what goes there, counted before anything is allocated.

What it decides and what it falls back to is tested without a device; what calls faiss-gpu by
tests/integration/test_gpu_device.py, where there is one. Which FAISS is installed is looked up when it is asked for, so
that a release with `gpu_index` serves from the host where the build has no GPU.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final, Literal, Protocol, TypeAlias

import faiss
import numpy as np

from rag_stack.index.gpu_placement import (
    Lists,
    Rows,
    SplitIndex,
    Vectors,
    VisitCounts,
    choose_hot_lists,
    device_part,
    list_bytes,
)

Kind: TypeAlias = Literal["flat", "ivf", "cagra", "hot_lists", "none"]

_FLOAT_BYTES: Final = 4
_ID_BYTES: Final = 8
# Of FAISS's scratch memory, which StandardGpuResources allocates at once; searches of a few queries need less.
SCRATCH_BYTES: Final = 64 << 20
# What cuBLAS's handles take beside it, of each index: 70 MB on an H200, whose workspaces are the largest.
_HANDLES_BYTES: Final = 76 << 20
# What an index takes that holds next to nothing.
FIXED_BYTES: Final = SCRATCH_BYTES + _HANDLES_BYTES
# CAGRA's graph as FAISS builds it by default.
_CAGRA_LINKS: Final = 64
_CAGRA_LINK_BYTES: Final = 4
# cuVS has more handles, and loads and links the kernels of its first search.
CAGRA_BYTES: Final = 256 << 20
# Candidates that a search of the graph keeps: with FAISS's 64, word vectors fall just short of a recall of 0.95. cuVS
# searches in one block up to 512.
_CAGRA_KEPT: Final = 128
_CAGRA_LARGEST_K: Final = 256
# FAISS's largest k on a device.
_LARGEST_K: Final = 2048


class Device(Protocol):
    """Puts CPU indexes onto a device. Raises RuntimeError or MemoryError, as FAISS does, when it refuses.

    Where there is no room for its handles FAISS does not raise: it ends the process. So who clones asks first.
    """

    def free_bytes(self) -> int:
        """What the device has left, for all processes together."""
        ...

    def clone(self, index: faiss.Index) -> faiss.Index:
        """The index on the device. Blocking."""
        ...

    def cagra(self, vectors: Vectors) -> faiss.Index:
        """A graph over vectors [n, d], built on the device. Blocking."""
        ...


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What goes to the device and how many bytes it takes there, all told. `reason` says why nothing does."""

    kind: Kind
    size_bytes: int
    reason: str = ""


def plan(opened: faiss.Index, *, budget_bytes: int, cagra: bool = False) -> GpuPlan:
    """What of an index fits into a budget of device memory. Looks at numbers alone, allocates nothing.

    The exact vectors, all searched, or with `cagra` a graph over them. Else the index's own inverted lists where it
    holds vectors in them. Else the hot lists, as many as fit beside the centroids. Else nothing.
    """
    # Another name: the owner must live as long as what it owns is looked at.
    index = faiss.downcast_index(opened)
    if isinstance(index, faiss.IndexPreTransform):
        return GpuPlan("none", 0, f"vectors behind a {type(index).__name__} stay on the host")
    # With their norms.
    vectors = _vector_bytes(index) + int(index.ntotal) * _FLOAT_BYTES
    inverted = _inverted(index)
    if _exact(index) is not None:
        graph = index.ntotal * _CAGRA_LINKS * _CAGRA_LINK_BYTES
        if cagra and vectors + graph + FIXED_BYTES + CAGRA_BYTES <= budget_bytes:
            return GpuPlan("cagra", vectors + graph + FIXED_BYTES + CAGRA_BYTES)
        if vectors + FIXED_BYTES <= budget_bytes:
            return GpuPlan("flat", vectors + FIXED_BYTES)
    if inverted is None or not _lists_of_vectors(index):
        return GpuPlan("none", 0, f"{_gb(vectors + FIXED_BYTES)} do not fit into {_gb(budget_bytes)}, and no lists")
    fixed = _centroid_bytes(inverted) + FIXED_BYTES
    lists = int(list_bytes(inverted).sum())
    if isinstance(index, faiss.IndexIVFFlat) and fixed + lists <= budget_bytes:
        return GpuPlan("ivf", fixed + lists)
    if fixed >= budget_bytes:
        return GpuPlan("none", 0, f"centroids and FAISS itself take {_gb(fixed)} of {_gb(budget_bytes)}")
    return GpuPlan("hot_lists", min(budget_bytes, fixed + lists))


class FreedError(RuntimeError):
    """What was on the device has been freed: the host answers."""


class DeviceCopy:
    """An index on the device. One search at a time: FAISS's resources of a device take no two. Until it is freed."""

    def __init__(
        self,
        index: faiss.Index,
        *,
        rows: int,
        parameters: Callable[[int], faiss.SearchParameters | None] = lambda _: None,
    ) -> None:
        """`rows` are those of the whole index, of which a part may be here."""
        self._index: faiss.Index | None = index
        self._rows = rows
        self._parameters = parameters
        self._lock = Lock()

    def search(self, vectors: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The k nearest to each vector. Blocking. Raises FreedError, or what FAISS raises."""
        with self._lock:
            if self._index is None:
                raise FreedError
            scores, rows = self._index.search(vectors, k, params=self._parameters(k))
        # cuVS has numbers of its own for a neighbour that is not there.
        absent = (rows < 0) | (rows >= self._rows)
        if absent.any():
            rows[absent], scores[absent] = -1, -np.inf
        return scores, rows

    def search_preassigned(
        self, vectors: Vectors, k: int, _lists: Lists, _similarities: Vectors, /
    ) -> tuple[Vectors, Rows]:
        """The best of the lists that the device chooses by its own copy of the centroids: cold ones are empty there."""
        return self.search(vectors, k)

    def free(self) -> None:
        """Let it go, once the search that runs has ended; again does nothing."""
        with self._lock:
            self._index = None


@dataclass(frozen=True, slots=True)
class OnDevice:
    """An index on the device: what answers unfiltered searches now, and what it was planned to take.

    `copy` is None where no list is hot yet, so that nothing is there. It finds no more than `largest_k`.
    """

    search: Callable[[Vectors, int], tuple[Vectors, Rows]]
    plan: GpuPlan
    copy: DeviceCopy | None
    counts: VisitCounts | None = None
    hot: Lists | None = None
    largest_k: int = _LARGEST_K


def place(
    opened: faiss.Index,
    device: Device | None,
    *,
    budget_bytes: int,
    counts: VisitCounts | None = None,
    cagra: bool = False,
) -> OnDevice | None:
    """Put an open index on a device; None, with one warning, where it stays on the host. Blocking.

    `counts` are the visits that real queries have made so far: without any, no list is known to be hot. The index must
    outlive what is placed.
    """
    index = faiss.downcast_index(opened)
    planned = plan(opened, budget_bytes=budget_bytes, cagra=cagra)
    if device is None:
        _stays(f"FAISS {faiss.__version__} is built without GPUs: faiss-gpu-cuvs is")
        return None
    if planned.kind == "none":
        _stays(planned.reason)
        return None
    try:
        # A graph takes about as much again while it is built: reckoned, and measured nowhere.
        if (free := device.free_bytes()) < planned.size_bytes * (2 if planned.kind == "cagra" else 1):
            raise MemoryError(f"it has {_gb(free)} left")
        return _placed(index, device, planned, counts)
    # FAISS's CUDA errors, and its own for memory that is not there.
    except (RuntimeError, MemoryError) as exc:
        _stays(f"the device refuses {_gb(planned.size_bytes)} as {planned.kind}: {exc}")
        return None


def hot_lists(opened: faiss.Index, planned: GpuPlan, counts: VisitCounts) -> Lists:
    """The lists that lie on the device by the visits so far, as many as were planned for."""
    host = _inverted(faiss.downcast_index(opened))
    room = planned.size_bytes - FIXED_BYTES - _centroid_bytes(host)
    return choose_hot_lists(counts.visits(), list_bytes(host), budget_bytes=room)


def same_lists(one: faiss.Index, other: faiss.Index) -> bool:
    """Whether both have the same centroids, so that a list's number means the same in both."""
    first, second = (_inverted(faiss.downcast_index(index)) for index in (one, other))
    if first is None or second is None or (first.nlist, first.d) != (second.nlist, second.d):
        return False
    own, others = (index.quantizer.reconstruct_n(0, int(index.nlist)) for index in (first, second))
    return bool(np.array_equal(own, others))


def gpu_device(number: int) -> Device | None:
    """The device of that number as FAISS has it; None for a FAISS without GPUs, or where it sees no such device.

    Or where torch sees none, which tells what is free there: a replica has vLLM's.
    """
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() <= number:
        return None
    import torch

    return _FaissGpu(number) if torch.cuda.is_available() else None


def _placed(index: faiss.Index, device: Device, planned: GpuPlan, counts: VisitCounts | None) -> OnDevice | None:
    match planned.kind:
        case "flat":
            copy = DeviceCopy(device.clone(_exact(index)), rows=int(index.ntotal))
        case "cagra":
            vectors = _exact(index).reconstruct_n(0, int(index.ntotal))
            copy = DeviceCopy(device.cagra(vectors), rows=int(index.ntotal), parameters=cagra_search)
            return OnDevice(copy.search, planned, copy, largest_k=_CAGRA_LARGEST_K)
        case "ivf":
            copy = DeviceCopy(device.clone(index), rows=int(index.ntotal))
        case _:
            return _hot(index, device, planned, counts)
    return OnDevice(copy.search, planned, copy)


def _hot(index: faiss.Index, device: Device, planned: GpuPlan, counts: VisitCounts | None) -> OnDevice | None:
    host = _inverted(index)
    counts = VisitCounts(int(host.nlist)) if counts is None else counts
    hot = hot_lists(index, planned, counts)
    exact, refine = None, 1.0
    if isinstance(index, faiss.IndexRefine):
        exact, refine = faiss.downcast_index(index.refine_index), float(index.k_factor)
    part = device_part(host, hot, exact=exact)
    mask = np.zeros(int(host.nlist), np.bool_)
    mask[hot] = True
    copy = DeviceCopy(device.clone(part), rows=int(host.ntotal)) if len(hot) else None
    split = SplitIndex(host, part if copy is None else copy, mask, counts, exact, refine)
    return OnDevice(split.search, planned, copy, counts, hot)


class _FaissGpu:
    """FAISS's resources on one device, of each index its own: who searches one waits for nobody who copies another."""

    def __init__(self, number: int) -> None:
        self._number = number

    def free_bytes(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info(self._number)[0])

    def clone(self, index: faiss.Index) -> faiss.Index:
        return faiss.index_cpu_to_gpu(self._resources(), self._number, index)

    def cagra(self, vectors: Vectors) -> faiss.Index:
        if not hasattr(faiss, "GpuIndexCagra"):
            raise RuntimeError("this FAISS has no CAGRA: it is built without cuVS")
        config = faiss.GpuIndexCagraConfig()
        config.device = self._number
        index = faiss.GpuIndexCagra(self._resources(), vectors.shape[1], faiss.METRIC_INNER_PRODUCT, config)
        index.train(vectors)
        return index

    def _resources(self) -> object:
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(SCRATCH_BYTES)
        return resources


def cagra_search(k: int) -> faiss.SearchParameters | None:
    """How a graph is searched for k; None for a FAISS without cuVS, where there is no such graph.

    It keeps more candidates than are asked for, in whole warps: cuVS refuses to find more than it keeps.
    """
    if not hasattr(faiss, "SearchParametersCagra"):
        return None
    parameters = faiss.SearchParametersCagra()
    parameters.itopk_size = max(_CAGRA_KEPT, -(-2 * k // 32) * 32)
    return parameters


def _exact(index: faiss.Index) -> faiss.Index:
    """Where all exact vectors lie one after another; None where they do not."""
    match index:
        case faiss.IndexRefine():
            return _exact(faiss.downcast_index(index.refine_index))
        case faiss.IndexHNSW():
            return _exact(faiss.downcast_index(index.storage))
        case faiss.IndexFlat():
            return index
        case _:
            return None


def _inverted(index: faiss.Index) -> faiss.IndexIVF:
    """The inverted lists, behind what ranks again; None for another index."""
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    return index if isinstance(index, faiss.IndexIVF) else None


def _lists_of_vectors(index: faiss.Index) -> bool:
    """Whether each list's vectors can be had: from the lists themselves, or from what ranks again."""
    return isinstance(index, faiss.IndexRefine | faiss.IndexIVFFlat)


def _centroid_bytes(inverted: faiss.IndexIVF) -> int:
    """Of the quantizer, and of the copy that cuVS has of it."""
    return 2 * int(inverted.nlist) * int(inverted.d) * _FLOAT_BYTES


def _vector_bytes(index: faiss.Index) -> int:
    return int(index.ntotal) * int(index.d) * _FLOAT_BYTES


def _stays(reason: str) -> None:
    logging.getLogger(__name__).warning("the index is searched on the host: %s", reason)


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.3f} GB"
