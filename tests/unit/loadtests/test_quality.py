"""The figures of `loadtests.quality`, and the questions that it takes out of documentation."""

import math

import pytest

from loadtests.quality_data import held_out
from loadtests.quality_figures import (
    DEFAULT,
    DENSE,
    Ranked,
    arms,
    build_report,
    gain,
    ndcg,
    recall,
    reciprocal_rank,
)
from loadtests.quality_plot import draw
from rag_stack.index.documents import Document


def test_ndcg_is_discounted_by_rank() -> None:
    relevant = {"a": 1, "b": 1}
    assert ndcg(["a", "b", "x"], relevant) == 1.0
    assert ndcg(["x", "a"], relevant) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg(["x"] * 10 + ["a"], {"a": 1}) == 0.0
    assert ndcg([], relevant) == 0.0
    assert ndcg(["a"], {}) == 0.0
    assert ndcg(["b", "a"], {"a": 2, "b": 1}) == pytest.approx((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)))


def test_recall_and_reciprocal_rank() -> None:
    assert recall(["a", "x", "b"], {"a": 1, "b": 1, "c": 1}, at=2) == pytest.approx(1 / 3)
    assert recall(["a"], {}, at=10) == 0.0
    assert reciprocal_rank(["x", "y", "a"], {"a": 1}) == pytest.approx(1 / 3)
    assert reciprocal_rank(["x"] * 10 + ["a"], {"a": 1}) == 0.0


def _ranked(arm: str, question: str, value: float, corpus: str = "scifact") -> Ranked:
    return Ranked(corpus, arm, question, value, 1.0, 1.0, value, 3.0)


RANKED = [
    *(_ranked(DENSE, str(n), 0.5) for n in range(4)),
    *(_ranked(DEFAULT, str(n), 0.5 + n / 10) for n in range(4)),
    _ranked(DEFAULT, "0", 0.1, corpus="python-docs"),
]


def test_a_gain_is_of_the_same_questions() -> None:
    assert gain(RANKED, corpus="scifact", arm=DEFAULT, over=DENSE) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert gain(RANKED, corpus="python-docs", arm=DEFAULT, over=DENSE) == []


def test_the_report_holds_the_goal_and_what_was_tried() -> None:
    result = build_report(RANKED, corpus="scifact", train={"dense": 0.6}, threshold={"dense": {"kept": 0.1}}, facts={})
    assert result.goals["quality.ndcg_gain"].value == pytest.approx(0.15)
    assert result.goals["quality.ndcg_gain"].met
    assert result.arms["scifact: default"]["ndcg_10"] == 0.65
    assert result.arms["train: dense"]["ndcg_10"] == 0.6
    assert set(arms(RANKED)) == {"scifact: dense", "scifact: default", "python-docs: default"}
    assert len(draw(result).axes) == 2


def test_without_questions_there_is_no_goal_met() -> None:
    result = build_report([], corpus="scifact", train={}, threshold={}, facts={})
    assert not result.goals["quality.ndcg_gain"].met


_TEXT = """glob module
===========

glob.escape(pathname)
    Escape all special characters of a path.

    Wildcards in a path are no longer wildcards afterwards, so that a name which happens to hold a question mark
    or a bracket is found as it is written, which is what most callers want of it.

glob.glob(pathname)
    Short one.

    {rest}

glob.iglob(pathname)
    Return an iterator which yields the paths.

    too short
"""


def test_questions_are_first_sentences_that_are_taken_out() -> None:
    document = Document("glob", _TEXT.format(rest="x " * 100), "glob module", "")
    (left,), (known,) = held_out([document], count=10)
    assert known.question == "Escape all special characters of a path."
    assert known.question not in left.text
    assert left.text[known.place :].startswith("Wildcards in a path are")
    assert "Short one." in left.text
    assert "which yields the paths" in left.text


def test_a_sentence_that_is_there_twice_is_no_question() -> None:
    texts = [Document(name, _TEXT.format(rest="x"), name, "") for name in ("one", "two")]
    left, known = held_out(texts, count=10)
    assert known == []
    assert [document.text for document in left] == [document.text for document in texts]
