"""What the overlap's figures are made of: what could be saved, what was, and which cells the goals are about."""

from collections.abc import Sequence

import numpy as np
import pytest

from loadtests.overlap_app import Answered, TimedReranker
from loadtests.overlap_figures import Cell, Sample, build_report, costs, differing, possible_s, shares
from rag_stack.types import Passage

HALF = Cell("half", 0.3, 4, counts="share")
FAST = Cell("fast", 0.0, 4, counts="fast")


def sample(arm: str, number: int, *, ttft_s: float, rerank_s: float = 0.3, engine_s: float = 0.5) -> Sample:
    return {"round": number, "arm": arm, "ttft_s": ttft_s, "rerank_s": rerank_s, "engine_s": engine_s}


def test_the_shorter_of_rerank_and_known_prompt_is_possible() -> None:
    without = sample("half without", 0, ttft_s=1.0)
    assert possible_s(HALF, without) == pytest.approx(0.3)
    assert possible_s(Cell("two", 0.3, 2), without) == pytest.approx(0.25)
    assert possible_s(Cell("none", 0.3, 0), without) == 0.0


def test_shares_and_costs_are_of_the_same_question() -> None:
    samples = [
        sample("half without", 0, ttft_s=1.0),
        sample("half with", 0, ttft_s=0.7),
        sample("half without", 1, ttft_s=2.0),
        sample("half with", 1, ttft_s=1.85),
        sample("half without", 2, ttft_s=9.0),
        sample("other with", 2, ttft_s=1.0),
    ]
    assert shares(HALF, samples) == pytest.approx([1.0, 0.5])
    assert costs(HALF, samples) == pytest.approx([0.7, 0.925])


def test_goals_are_of_the_cells_that_count_for_them() -> None:
    samples = [
        sample("half without", 0, ttft_s=1.0),
        sample("half with", 0, ttft_s=0.73),
        sample("fast without", 0, ttft_s=1.0, rerank_s=0.0),
        sample("fast with", 0, ttft_s=1.01, rerank_s=0.0),
    ]
    goals = build_report((HALF, FAST), samples, told={"half": {"started": 1}}, facts={}).goals
    assert goals["overlap.share"].value == pytest.approx(0.9)
    assert goals["overlap.fast_cost"].value == pytest.approx(1.01)
    assert goals["overlap.wrong_cost"].value is None
    assert [goal.met for goal in goals.values()] == [True, True, False]


def answered(text: str = "a", sources: Sequence[str] = ("s",)) -> Answered:
    return Answered(1.0, text, tuple(sources), ((1, 0, 1),), {})


def test_other_words_or_sources_are_told() -> None:
    same = {"half": {"without": [answered(), answered()], "with": [answered(), answered()]}}
    assert differing(same) == []
    other = {"half": {"without": [answered(), answered()], "with": [answered(), answered(sources=("t",))]}}
    assert differing(other) == ["half, question 2"]


@pytest.mark.parametrize(("stay", "order"), [(4, [0, 1, 2, 3]), (2, [0, 1, 3, 2]), (0, [3, 2, 1, 0])])
def test_the_timed_reranker_leaves_the_first_ones_in_their_places(stay: int, order: list[int]) -> None:
    passages = [Passage(str(n), str(n), "", "", "", 0, 0) for n in range(4)]
    scores = TimedReranker(0.0, stay).scores("q", passages)
    assert np.argsort(-scores).tolist() == order
    assert (scores.max(), scores.min()) == (1.0, 0.5)
