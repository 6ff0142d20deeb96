"""How each kind of FAISS index is told which rows may be found."""

import faiss
import numpy as np
import numpy.typing as npt


def selecting(index: faiss.Index, allowed: npt.NDArray[np.bool_]) -> faiss.SearchParameters:
    """Search parameters that allow some rows (bool [ntotal]) and keep what the index was tuned to when it was built."""
    return _parameters(index, faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")))


def _parameters(index: faiss.Index, selector: faiss.IDSelector) -> faiss.SearchParameters:
    index = faiss.downcast_index(index)
    match index:
        case faiss.IndexPreTransform():
            return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector))
        case faiss.IndexRefine():
            inner = _parameters(index.base_index, selector)
            return faiss.IndexRefineSearchParameters(base_index_params=inner, k_factor=index.k_factor)
        case faiss.IndexIVF():
            return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
        case faiss.IndexHNSW():
            return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
        case _:
            return faiss.SearchParameters(sel=selector)
