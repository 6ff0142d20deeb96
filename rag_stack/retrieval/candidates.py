"""One store's passages for a question: what lies near it and what shares its words, under one score."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from rag_stack.index.reader import IndexVersion, Rows, Vectors
from rag_stack.retrieval.diversity import distinct
from rag_stack.retrieval.filters import Mask
from rag_stack.retrieval.fusion import Ranking, fused
from rag_stack.types import Hit, Passage


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows and scores (0..1), best first, equal ones in the order of rows; `more` if a wider search may find more."""

    ranked: tuple[tuple[int, float], ...]
    more: bool


def candidates(
    index: IndexVersion,
    queries: Sequence[str],
    vectors: Vectors,
    *,
    k: int,
    ranking: Ranking,
    allowed: Mask | None = None,
) -> Candidates:
    """The best of `k` nearest and `k` with most of the words, or of one of the two; of several queries the best score.

    `vectors` are the queries', float32 [n, d]; `allowed` is bool [ntotal]: the rows that may be found. Blocking.
    """
    k = min(k, index.ntotal)
    if ranking.mode == "dense" or index.lexical is None:
        scores, rows = index.search(vectors, k, allowed=allowed)
        found = [_clipped(*each) for each in zip(scores, rows, strict=True)]
        more = bool((rows >= 0).all())
    else:
        found, full = [], []
        near = index.search(vectors, k, allowed=allowed) if ranking.mode == "hybrid" else None
        for number, query in enumerate(queries):
            words = index.lexical.scores(query, allowed=allowed)
            by_words = words.best(k)
            rows, similarities = by_words, np.zeros(len(by_words), np.float32)
            if near is not None:
                nearest = (near[0][number], near[1][number])
                rows, similarities = _with_similarities(index, vectors[number], *nearest, by_words)
                full.append(bool((nearest[1] >= 0).all()))
            full.append(len(by_words) == k)
            found.append((fused(ranking, similarities, words.shares(rows)), rows))
        more = any(full)
    return Candidates(_merged(found), more and k < index.ntotal)


def best_passages(index: IndexVersion, question: str, vector: Vectors, top_k: int) -> list[Passage]:
    """What a release finds that says nothing about ranking, in a version that nobody need serve.

    Different texts, best first. `vector` is the question's, float32 [1, d]. Blocking.
    """
    ranking = Ranking()
    k = max(ranking.candidates, 2 * top_k)
    found = candidates(index, [question], vector, k=k, ranking=ranking).ranked
    hits = (Hit(index.passages.get(row), score) for row, score in found)
    return [hit.passage for hit in islice(distinct(hits, duplicates=ranking.duplicates), top_k)]


def _clipped(scores: npt.NDArray[np.float32], rows: Rows) -> tuple[npt.NDArray[np.float32], Rows]:
    sane = (rows >= 0) & np.isfinite(scores)
    return np.clip(scores[sane], 0.0, 1.0), rows[sane]


def _with_similarities(
    index: IndexVersion, vector: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], near: Rows, by_words: Rows
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """All rows of the two lists, each with its cosine similarity: what the search did not find is compared now."""
    sane = (near >= 0) & np.isfinite(scores)
    near, scores = near[sane], scores[sane]
    found = set(near.tolist())  # of some hundred numbers a set is made ten times as fast as NumPy sorts them
    rest = np.array([row for row in by_words.tolist() if row not in found], by_words.dtype)
    if not len(rest):
        return near, scores
    similarities = index.similarities(vector[None], rest)[0]
    return np.concatenate([near, rest]), np.concatenate([scores, similarities])


def _merged(found: Sequence[tuple[npt.NDArray[np.float32], Rows]]) -> tuple[tuple[int, float], ...]:
    """Each row once, with its best score."""
    if len(found) == 1:  # one query finds a row once
        scores, rows = found[0]
        order = np.lexsort((rows, -scores))
        return tuple(zip(rows[order].tolist(), scores[order].tolist(), strict=True))
    best: dict[int, float] = {}
    for scores, rows in found:
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            best[row] = max(score, best.get(row, score))
    return tuple(sorted(best.items(), key=lambda item: (-item[1], item[0])))
