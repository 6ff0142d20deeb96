"""Searches that may find only some rows, by every kind of FAISS index, as well as a search for all.

An index that does not look at everything, a graph or inverted lists, finds its way by rows that a filter forbids: the
fewer it allows, the less is found. So few rows are compared one by one, and for more the search is widened until it can
be expected to meet as many allowed rows as it meets rows without a filter.
"""

import math
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Allowed = npt.NDArray[np.bool_]

# As many rows are always searched exactly: some milliseconds at 384 dimensions, about what a widened search takes.
_FEW_ROWS: Final = 20_000
# Of so many, one is compared by its number sooner than all are asked whether they are allowed.
_SPARSE: Final = 200
# Rows that are held in memory at once.
_BLOCK_ROWS: Final = 4096
# A graph's search takes time by more than this; all allowed rows are scanned as soon.
_MAX_EF_SEARCH: Final = 1024


def search_selected(
    index: faiss.Index, vectors: Vectors, k: int, allowed: Allowed, *, few_rows: int = _FEW_ROWS
) -> tuple[Vectors, Rows]:
    """The k allowed rows (bool [ntotal]) nearest to each vector: scores and rows, both [n, k], best first.

    Where fewer are allowed, the row is -1 and the score says nothing. Exact while no more than `few_rows` are allowed,
    about as exact as a search for all otherwise. Takes at most a scan over all rows.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        for place in range(index.chain.size()):
            vectors = faiss.downcast_VectorTransform(index.chain.at(place)).apply(vectors)
        return search_selected(index.index, vectors, k, allowed, few_rows=few_rows)
    count = int(np.count_nonzero(allowed))
    if count <= few_rows:
        return _exact(index, vectors, k, allowed, count)
    scores, rows = _widened(index, vectors, k, allowed, share=count / len(allowed))
    if (rows[:, min(k, count) - 1] < 0).any():
        # All that lay near was forbidden.
        return _exact(index, vectors, k, allowed, count)
    return scores, rows


def similarities(index: faiss.Index, vectors: Vectors, rows: Rows) -> Vectors:
    """The similarity of each vector to each of some rows, float32 [n, rows]; -inf for a row that a search misses.

    `rows` are different ones. Where the index keeps each row's vector under its number, only those are read. Where it
    does not, all lists are gone through for them; memory is taken for `rows` alone.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        for place in range(index.chain.size()):
            vectors = faiss.downcast_VectorTransform(index.chain.at(place)).apply(vectors)
        return similarities(index.index, vectors, rows)
    storage = _storage(index)
    compared = np.full((len(vectors), len(rows)), -np.inf, np.float32)
    if storage is not None:
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = rows[first : first + _BLOCK_ROWS]
            compared[:, first : first + _BLOCK_ROWS] = vectors @ storage.reconstruct_batch(block).T
        return compared
    if not len(rows):
        return compared
    selector = faiss.IDSelectorBatch(np.ascontiguousarray(rows, np.int64))
    scores, found = _probed(index, vectors, len(rows), _parameters(index, selector, 1 / max(1, index.ntotal), 1))
    order = np.argsort(rows)
    for number in range(len(vectors)):
        known = found[number] >= 0
        place = order[np.searchsorted(rows, found[number][known], sorter=order)]
        compared[number, place] = scores[number][known]
    return compared


def selecting(index: faiss.Index, allowed: Allowed, *, share: float = 1.0, at_least: int = 1) -> faiss.SearchParameters:
    """Search parameters that allow some rows (bool [ntotal]) and keep what the index was tuned to when it was built.

    With the `share` of rows that is allowed, it is widened by as much, to look at `at_least` so many.
    """
    return _parameters(index, faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")), share, at_least)


def _exact(index: faiss.Index, vectors: Vectors, k: int, allowed: Allowed, count: int) -> tuple[Vectors, Rows]:
    """As exact as the vectors that the index keeps: all allowed rows are compared."""
    storage = _storage(index)
    if storage is None:
        return _probed(index, vectors, k, selecting(index, allowed, share=1 / len(allowed)))
    if count * _SPARSE <= len(allowed):
        return _compared(storage, vectors, k, np.flatnonzero(allowed))
    scores, rows = storage.search(vectors, k, params=selecting(storage, allowed))
    return scores, rows


def _storage(index: faiss.Index) -> faiss.Index | None:
    """Where an index keeps each row's vector under its number, the best that it has."""
    match index:
        case faiss.IndexRefine():
            return _storage(faiss.downcast_index(index.refine_index))
        case faiss.IndexHNSW():
            return _storage(faiss.downcast_index(index.storage))
        case faiss.IndexFlatCodes():
            return index
        case _:
            return None


def _compared(storage: faiss.Index, vectors: Vectors, k: int, rows: Rows) -> tuple[Vectors, Rows]:
    """The best among some rows, a block at a time."""
    best_scores = np.full((len(vectors), k), -np.inf, np.float32)
    best_rows = np.full((len(vectors), k), -1, np.int64)
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = rows[first : first + _BLOCK_ROWS]
        scores = np.concatenate([best_scores, vectors @ storage.reconstruct_batch(block).T], axis=1)
        found = np.concatenate([best_rows, np.broadcast_to(block, (len(vectors), len(block)))], axis=1)
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best_scores, best_rows = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
    # Equal scores in the order of rows.
    order = np.lexsort((best_rows, -best_scores), axis=1)
    return np.take_along_axis(best_scores, order, 1), np.take_along_axis(best_rows, order, 1)


def _widened(index: faiss.Index, vectors: Vectors, k: int, allowed: Allowed, *, share: float) -> tuple[Vectors, Rows]:
    if isinstance(index, faiss.IndexIVF):
        return _probed(index, vectors, k, selecting(index, allowed, share=share, at_least=k))
    if isinstance(index, faiss.IndexHNSW):
        share = min(share, _share_around(index, vectors, allowed))
        if share == 0 or _ef_search(index, share, k) > _MAX_EF_SEARCH:
            return _exact(index, vectors, k, allowed, int(np.count_nonzero(allowed)))
    scores, rows = index.search(vectors, k, params=selecting(index, allowed, share=share, at_least=k))
    return scores, rows


def _share_around(index: faiss.IndexHNSW, vectors: Vectors, allowed: Allowed) -> float:
    """How many of the nearest rows are allowed: few, where a filter leaves out just what the query is about."""
    _, near = index.search(vectors, int(index.hnsw.efSearch))
    return float((allowed[near] & (near >= 0)).mean(axis=1).min())


def _probed(
    index: faiss.IndexIVF, vectors: Vectors, k: int, parameters: faiss.SearchParametersIVF
) -> tuple[Vectors, Rows]:
    """Lists are chosen by all centroids: a graph over them takes longer, and misses some, where many are probed."""
    quantizer = faiss.downcast_index(index.quantizer)
    centroids = _storage(quantizer)
    scores, rows = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
    if centroids is None or centroids is quantizer:
        index.search(vectors, k, params=parameters, D=scores, I=rows)
        return scores, rows
    distances, lists = centroids.search(vectors, parameters.nprobe)
    # FAISS's method for arrays takes no parameters.
    arrays = (faiss.swig_ptr(each) for each in (lists, distances, scores, rows))
    index.search_preassigned_c(len(vectors), faiss.swig_ptr(vectors), k, *arrays, False, parameters)
    return scores, rows


def _parameters(index: faiss.Index, selector: faiss.IDSelector, share: float, at_least: int) -> faiss.SearchParameters:
    index = faiss.downcast_index(index)
    match index:
        case faiss.IndexPreTransform():
            return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector, share, at_least))
        case faiss.IndexRefine():
            inner = _parameters(index.base_index, selector, share, math.ceil(at_least * index.k_factor))
            return faiss.IndexRefineSearchParameters(base_index_params=inner, k_factor=index.k_factor)
        case faiss.IndexIVF():
            return faiss.SearchParametersIVF(sel=selector, nprobe=min(index.nlist, math.ceil(index.nprobe / share)))
        case faiss.IndexHNSW():
            wide = min(_MAX_EF_SEARCH, _ef_search(index, share, at_least)) if share < 1 else index.hnsw.efSearch
            return faiss.SearchParametersHNSW(sel=selector, efSearch=wide)
        case _:
            return faiss.SearchParameters(sel=selector)


def _ef_search(index: faiss.IndexHNSW, share: float, at_least: int) -> int:
    return math.ceil(max(int(index.hnsw.efSearch), at_least) / share)
