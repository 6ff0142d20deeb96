"""Devices for indexes that are this machine: one that takes what it is given, and one that is full."""

import faiss

from rag_stack.index.gpu_placement import Vectors


class HostDevice:
    """Indexes stay where they are; `cloned` keeps what would be on the device."""

    def __init__(self) -> None:
        self.cloned: list[faiss.Index] = []

    def free_bytes(self) -> int:
        return 1 << 40

    def clone(self, index: faiss.Index) -> faiss.Index:
        self.cloned.append(index)
        return index

    def cagra(self, vectors: Vectors) -> faiss.Index:
        index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        index.add(vectors)
        index.hnsw.efSearch = 200
        return self.clone(index)


class FullDevice(HostDevice):
    """Has no memory left."""

    def clone(self, index: faiss.Index) -> faiss.Index:
        raise RuntimeError("StandardGpuResources: alloc fail type FlatData: cudaMalloc error out of memory [2]")
