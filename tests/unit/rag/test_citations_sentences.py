"""Where sentences begin and end, in prose, lists and documentation with code in it."""

import time

import pytest

from rag_stack.rag.citations import Citer
from rag_stack.rag.sentences import mask_code, mask_fences, split_sentences
from rag_stack.types import Hit, Passage, Source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One here. Two there! Three? Yes", ["One here.", "Two there!", "Three?", "Yes"]),
        ("Since 3.11 it costs 2.5 ms. Then none.", ["Since 3.11 it costs 2.5 ms.", "Then none."]),
        ("Use e.g. a list, i.e. this. Dr. Lee agrees.", ["Use e.g. a list, i.e. this.", "Dr. Lee agrees."]),
        ("Lists, tuples, etc. Then more.", ["Lists, tuples, etc.", "Then more."]),
        ("It calls os.path.join() first. functools.wraps() is next.",
         ["It calls os.path.join() first.", "functools.wraps() is next."]),
        ("A soft\nwrap stays. Good.", ["A soft\nwrap stays.", "Good."]),
        ("Steps:\n1. First do\n2. Then rest\n\n- one\n* two", ["Steps:", "First do", "Then rest", "one", "two"]),
        ("## Head\nText follows.", ["Head", "Text follows."]),
        ("Type `a. b` now. Done", ["Type `a. b` now.", "Done"]),
        ("Wait... and see. It ends.", ["Wait... and see.", "It ends."]),
        ('He said "stop." Then left.', ['He said "stop."', "Then left."]),
        ("Straße é. Ünder 7.", ["Straße é.", "Ünder 7."]),
        ("--- \n\n ...\n", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in split_sentences(text)] == expected


def test_masks_keep_every_offset() -> None:
    text = "Say `x` [1].\n```py\na[1]\n```\nEnd [2].\n>>> b [1]\n"

    assert len(mask_code(text)) == len(mask_fences(text)) == len(text)
    assert "x" not in mask_code(text)
    assert mask_code(text).index("[2]") == text.index("[2]")
    assert mask_fences(text).index("`x`") == text.index("`x`")


@pytest.mark.parametrize("piece", ["`", "[1", "[1] ", "(", "a. ", "e.g. ", "```\n", "*", "\n", "1. ", "a`b "])
def test_hostile_answers_do_not_stall(piece: str) -> None:
    passage = Passage("p", "d", "Some text of a passage here.", "t", "", 0, 28)
    started = time.process_time()

    Citer().cite(piece * 30_000, [Source(number=1, hit=Hit(passage=passage, score=1.0))])

    assert time.process_time() - started < 5  # quadratic ones took minutes
