"""Figures of `loadtests.embedding`: how near vectors are, and how well they rank."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

TOP: Final = 10


def lowest_cosine(found: Vectors, expected: Vectors) -> float:
    """Of unit vectors, row by row."""
    return float(np.min(np.sum(found.astype(np.float64) * expected, axis=1)))


def mean_ndcg(
    queries: Vectors, passages: Vectors, *, names: Sequence[str], relevant: Sequence[Mapping[str, int]]
) -> float:
    """nDCG@10 of an exact search, averaged over the queries; `names` are the passages', `relevant` the queries'."""
    ranked = np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :TOP]
    found = [ndcg([names[row] for row in rows], told) for rows, told in zip(ranked, relevant, strict=True)]
    return float(np.mean(found))


def ndcg(found: Sequence[str], relevant: Mapping[str, int]) -> float:
    """nDCG@10 as trec_eval has it: linear gains, discounted by log2(rank + 1)."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    gains = [relevant.get(each, 0) for each in found[:TOP]]
    ideal = sorted(relevant.values(), reverse=True)[:TOP]
    return float(np.dot(gains, discounts[: len(gains)]) / np.dot(ideal, discounts[: len(ideal)]))
