"""How a search is ranked, and two lists of passages made one: what lies near a question, and what shares its words.

Both lists' scores are known for every passage of either, so that nothing is guessed for one that only one list has.

share            (1 - w) * cosine + w * (BM25 weight / what the question's words could weigh at most)
reciprocal_rank  (1 - w) / (60 + rank by vector) + w / (60 + rank by words), as a share of what the first of both has

`share` is the default: it needs nothing but the passage and the question, so it means the same whatever else is found,
whatever is filtered, and in every store. A question about something else shares few of its words and lies far away, and
so scores low: `score_threshold` can leave it without sources. A reciprocal rank says only where a passage stands: the
best of a list of bad ones has nearly 1.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from rag_stack.config import RetrievalConfig
from rag_stack.errors import InvalidRequestError
from rag_stack.protocol import RankingOptions

Scores = npt.NDArray[np.float32]
Mode: TypeAlias = Literal["hybrid", "dense", "lexical"]
Fusion: TypeAlias = Literal["share", "reciprocal_rank"]

# On SciFact's train claims nDCG@10 is 0.733 at 0.4, 0.736 at 0.5 and 0.737 at 0.6 (0.660 by vectors, 0.696 by words).
# More weight for words tells questions about something else apart less well.
TEXT_WEIGHT: Final = 0.5
# Cormack, Clarke and Buettcher, SIGIR 2009.
_RANK_CONSTANT: Final = 60


@dataclass(frozen=True, slots=True)
class Ranking:
    """How passages are found and ordered.

    mode         by vectors and words, or by one of them; where a store's words are not indexed, by vectors
    fusion       how the two become one score
    text_weight  how much of that the words are, 0..1
    candidates   passages that each of the two gives, at least
    rerank       whether the reranker, if there is one, has the last word
    rerank_candidates  passages that it looks at, at most; of several queries, pairs of a query and a passage
    duplicates   a passage that shares so much with a better one is left out, 0..1; 1: only equal texts are
    """

    mode: Mode = "hybrid"
    fusion: Fusion = "share"
    text_weight: float = TEXT_WEIGHT
    candidates: int = 100
    rerank: bool = True
    rerank_candidates: int = 20
    duplicates: float = 1.0

    @classmethod
    def of(cls, config: RetrievalConfig) -> Self:
        """A release's."""
        return cls(
            mode=config.mode,
            fusion=config.fusion,
            text_weight=config.text_weight,
            candidates=config.candidates,
            rerank_candidates=config.rerank_candidates,
            duplicates=config.duplicates,
        )

    def asked(self, options: RankingOptions | None) -> "Ranking":
        """The same, as a request changes it. Raises InvalidRequestError for weights that nothing is made of."""
        if options is None:
            return self
        match options.ranker:
            case "hybrid" | "dense" | "lexical":
                ranking = replace(self, mode=options.ranker, rerank=False)
            case "none":
                ranking = replace(self, rerank=False)
            case _:
                ranking = self
        if options.hybrid_search is None:
            return ranking
        if options.ranker in ("dense", "lexical"):
            raise InvalidRequestError(
                f"`hybrid_search` weighs vectors and words, but the ranker is {options.ranker!r}: leave one out",
                param="ranking_options",
            )
        weights = options.hybrid_search
        weight = weights.text_weight / (weights.embedding_weight + weights.text_weight)
        return replace(ranking, mode="hybrid", text_weight=weight)


def fused(ranking: Ranking, similarities: Scores, shares: Scores) -> Scores:
    """One score for each passage, 0..1, from its cosine similarity and its share of the question's words, all [n]."""
    # Of a number and NaN `fmax` takes the number.
    dense: Scores = np.minimum(np.fmax(similarities, np.float32(0)), np.float32(1))
    match ranking.mode:
        case "dense":
            return dense
        case "lexical":
            return shares
    weight = np.float32(ranking.text_weight)
    if ranking.fusion == "share":
        return (1 - weight) * dense + weight * shares
    # A passage without any of the words has no rank among those that have some.
    by_words = np.where(shares > 0, _reciprocal(shares), 0.0)
    summed = (1 - weight) * _reciprocal(similarities) + weight * by_words
    return (summed * (_RANK_CONSTANT + 1)).astype(np.float32)


def _reciprocal(scores: Scores) -> npt.NDArray[np.float64]:
    """1 / (60 + rank), from rank 1; equal scores in the order in which they come."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return np.asarray(1 / (_RANK_CONSTANT + ranks))
