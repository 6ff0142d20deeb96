"""Seeded unit vectors that lie around centres, as those of texts do, and indexes of them."""

import faiss
import numpy as np
import numpy.typing as npt


def clustered(
    count: int, dimension: int, *, seed: int = 1, centres: int = 80, spread: float = 1.0
) -> npt.NDArray[np.float32]:
    """Float32 [count, dimension] of unit length; the centres are the same whatever the seed."""
    around = _unit(np.random.default_rng(0).standard_normal((centres, dimension), np.float32))
    draw = np.random.default_rng(seed)
    noise = _unit(draw.standard_normal((count, dimension), np.float32))
    return _unit(around[draw.integers(0, centres, count)] + np.float32(spread) * noise)


def index_of(recipe: str, *, rows: int, dimension: int, nprobe: int) -> faiss.Index:
    """A FAISS index by inner product over `clustered` vectors, trained on all of them."""
    index = faiss.index_factory(dimension, recipe, faiss.METRIC_INNER_PRODUCT)
    vectors = clustered(rows, dimension, spread=1.5)
    index.train(vectors)
    index.add(vectors)
    if "IVF" in recipe:
        faiss.extract_index_ivf(index).nprobe = nprobe
    return index


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
