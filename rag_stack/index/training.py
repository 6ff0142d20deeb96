"""A recipe and the vectors of a file -> a FAISS index, trained on a sample and filled block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from rag_stack.errors import IndexVersionError
from rag_stack.index.flat_file import FlatFile
from rag_stack.index.selector import selecting

_SEED: Final = 20_240
# k-means of FAISS takes 256 a centroid at most and warns below 39. Product quantizers have up to 256 centroids.
_SAMPLE: Final = 65_536
_SAMPLE_PER_LIST: Final = 64
_BLOCK: Final = 16_384
# FastScan's search for a query at a time. What it takes by itself packs tables for several, anew for each list, which a
# single query pays for nothing. The file keeps it.
_ONE_QUERY: Final = 10


@dataclass(frozen=True, slots=True)
class Trained:
    """An index with all vectors in it, and how many of them it was trained on."""

    index: faiss.Index
    sample: int


def train(flat: FlatFile, recipe: str, search_parameters: str = "") -> Trained:
    """Build an index of a complete file's vectors. Blocking.

    Exact vectors stay in the file, mapped: those of `Flat`, and those by which a refining index ranks again. So the
    file must outlive the index. Raises IndexVersionError for what FAISS cannot build, or cannot search with a filter.
    """
    try:
        index = faiss.index_factory(flat.dimension, recipe, faiss.METRIC_INNER_PRODUCT)
        sample = 0
        match index:
            case faiss.IndexFlat():
                index = flat.index()
            case faiss.IndexRefineFlat():
                sample = _fill(index.base_index, flat)
                exact = flat.index()
                index.refine_index, index.own_refine_index = exact, False
                index.is_trained, index.ntotal = True, exact.ntotal
                # It belongs to Python: it lives as long as the index.
                index.referenced_objects = [exact]
            case _:
                sample = _fill(index, flat)
        if isinstance(inner := _inner(index), faiss.IndexIVFFastScan):
            inner.implem = _ONE_QUERY
        if search_parameters:
            faiss.ParameterSpace().set_index_parameters(index, search_parameters)
        # Not every kind of index can be searched with a filter, and every store can be asked for one.
        first = np.array(flat.vectors()[:1])
        index.search(first, 1, params=selecting(index, np.ones(flat.count, np.bool_)))
    except (RuntimeError, MemoryError) as exc:
        reason = str(exc).split("Error: ")[-1]
        raise IndexVersionError(
            f"FAISS cannot build and filter {recipe!r} (search parameters {search_parameters!r}) from {flat.count} "
            f"vectors of {flat.dimension} dimensions: {reason}; choose another recipe in the spec"
        ) from exc
    return Trained(index, sample)


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS takes one thread: several add to a graph in another order each time."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _fill(index: faiss.Index, flat: FlatFile) -> int:
    vectors = flat.vectors()
    sample = 0
    if not index.is_trained:
        inner = _inner(index)
        if isinstance(inner, faiss.IndexPQ | faiss.IndexIVFPQ):
            # It orders the codes for a search that nobody asks for, and takes most of the time.
            inner.do_polysemous_training = False
        lists = int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 0
        rows = _sampled(flat.count, _SAMPLE + _SAMPLE_PER_LIST * lists)
        sample = len(rows)
        index.train(np.array(vectors[rows]))
    for first in range(0, flat.count, _BLOCK):
        index.add(np.array(vectors[first : first + _BLOCK]))
    return sample


def _sampled(count: int, size: int) -> npt.NDArray[np.int64]:
    if size >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, size, replace=False, shuffle=False))


def _inner(index: faiss.Index) -> faiss.Index:
    """What the vectors go into at last, behind rotations and before refinement."""
    index = faiss.downcast_index(index)
    match index:
        case faiss.IndexPreTransform():
            return _inner(index.index)
        case faiss.IndexRefine():
            return _inner(index.base_index)
        case _:
            return index
