"""Two scores made one, and what a request may change about it."""

import numpy as np
import pytest

from rag_stack.config import RetrievalConfig
from rag_stack.errors import InvalidRequestError
from rag_stack.protocol import HybridSearch, RankingOptions
from rag_stack.retrieval.fusion import Ranking, fused

COSINES = np.array([0.9, 0.5, -0.2, -np.inf], np.float32)
SHARES = np.array([0.0, 0.6, 0.8, 0.1], np.float32)


def test_a_share_is_the_weighted_sum_of_both() -> None:
    scores = fused(Ranking(text_weight=0.25), COSINES, SHARES)
    assert scores == pytest.approx([0.675, 0.525, 0.2, 0.025])


def test_a_share_says_the_same_whatever_else_was_found() -> None:
    alone = fused(Ranking(), COSINES[1:2], SHARES[1:2])
    assert alone[0] == fused(Ranking(), COSINES, SHARES)[1]


def test_reciprocal_ranks_count_places_and_are_one_at_most() -> None:
    ranking = Ranking(fusion="reciprocal_rank", text_weight=0.5)
    scores = fused(ranking, COSINES, SHARES)
    half = 0.5 * 61
    assert scores == pytest.approx(
        [half / 61, half * (1 / 62 + 1 / 62), half * (1 / 63 + 1 / 61), half * (1 / 64 + 1 / 63)]
    )
    first_of_both = fused(ranking, np.array([0.9, 0.1], np.float32), np.array([0.9, 0.1], np.float32))
    assert first_of_both[0] == pytest.approx(1.0)


def test_what_is_no_number_is_not_near() -> None:
    cosines = np.array([np.nan, np.inf, -np.inf, 2.0], np.float32)
    assert fused(Ranking(mode="dense"), cosines, SHARES).tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("fusion", ["share", "reciprocal_rank"])
def test_scores_are_within_0_and_1(fusion: str) -> None:
    draw = np.random.default_rng(1)
    cosines, shares = draw.uniform(-1.01, 1.01, 500).astype(np.float32), draw.uniform(0, 1, 500).astype(np.float32)
    for weight in (0.0, 0.3, 1.0):
        scores = fused(Ranking(fusion=fusion, text_weight=weight), cosines, shares)  # type: ignore[arg-type]
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()


def test_one_mode_gives_that_one_score() -> None:
    assert fused(Ranking(mode="dense"), COSINES, SHARES) == pytest.approx([0.9, 0.5, 0.0, 0.0])
    assert fused(Ranking(mode="lexical"), COSINES, SHARES) == pytest.approx(SHARES)


def test_a_release_says_how_it_ranks() -> None:
    config = RetrievalConfig(mode="lexical", fusion="reciprocal_rank", text_weight=0.3, candidates=7, duplicates=0.5)
    assert Ranking.of(config) == Ranking("lexical", "reciprocal_rank", 0.3, 7, duplicates=0.5)
    assert Ranking.of(RetrievalConfig()) == Ranking()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, Ranking()),
        (RankingOptions(), Ranking()),
        (RankingOptions(ranker="auto"), Ranking()),
        (RankingOptions(ranker="default-2024-11-15"), Ranking()),
        (RankingOptions(ranker="none"), Ranking(rerank=False)),
        (RankingOptions(ranker="dense"), Ranking(mode="dense", rerank=False)),
        (RankingOptions(ranker="lexical"), Ranking(mode="lexical", rerank=False)),
        (
            RankingOptions(hybrid_search=HybridSearch(embedding_weight=3, text_weight=1)),
            Ranking(text_weight=0.25),
        ),
        (
            RankingOptions(ranker="hybrid", hybrid_search=HybridSearch(embedding_weight=0, text_weight=2)),
            Ranking(text_weight=1.0, rerank=False),
        ),
    ],
)
def test_a_request_changes_what_it_names(options: RankingOptions | None, expected: Ranking) -> None:
    assert Ranking().asked(options) == expected


def test_a_request_for_words_makes_a_dense_release_hybrid() -> None:
    options = RankingOptions(hybrid_search=HybridSearch(embedding_weight=1, text_weight=1))
    assert Ranking(mode="dense", text_weight=0.1).asked(options) == Ranking(mode="hybrid", text_weight=0.5)


def test_weights_without_a_hybrid_make_no_sense() -> None:
    weights = HybridSearch(embedding_weight=1, text_weight=1)
    with pytest.raises(InvalidRequestError, match="leave one out"):
        Ranking().asked(RankingOptions(ranker="dense", hybrid_search=weights))
