"""What says nearly the same as a better passage is left out."""

from collections.abc import Iterator

from rag_stack.retrieval.diversity import distinct
from rag_stack.types import Hit, Passage

TEXT = "The lighthouse of Alden burns whale oil in nine copper lamps, and its keeper climbs 200 steps every night."


def _hits(*texts: str) -> list[Hit]:
    return [Hit(Passage(str(n), str(n), text, "", "", 0, len(text)), 1 - n / 10) for n, text in enumerate(texts)]


def _kept(*texts: str, duplicates: float) -> list[str]:
    return [hit.passage.passage_id for hit in distinct(_hits(*texts), duplicates=duplicates)]


def test_equal_texts_are_given_once() -> None:
    assert _kept(TEXT, "other", TEXT, "other", "third", duplicates=1.0) == ["0", "1", "4"]


def test_at_one_only_equal_texts_go() -> None:
    assert _kept(TEXT, TEXT + " ", TEXT.lower(), duplicates=1.0) == ["0", "1", "2"]


def test_nearly_equal_texts_go_and_the_best_stays() -> None:
    changed = TEXT.replace("nine", "ten")
    other = "The bakery sells rye bread with caraway seeds, and every Friday the oven also roasts chestnuts."
    assert _kept(TEXT, changed, other, duplicates=0.6) == ["0", "2"]
    assert _kept(TEXT, changed, other, duplicates=0.9) == ["0", "1", "2"]


def test_a_text_inside_another_is_its_duplicate() -> None:
    assert _kept(TEXT, TEXT[:60], duplicates=0.8) == ["0"]
    assert _kept(TEXT[:60], TEXT, duplicates=0.8) == ["0"]


def test_short_and_empty_texts_are_compared_too() -> None:
    assert _kept("yes", "no", "", "Yes!", duplicates=0.9) == ["0", "1", "2"]


def test_no_more_is_read_than_is_asked_for() -> None:
    read: list[str] = []

    def hits() -> Iterator[Hit]:
        for hit in _hits("a", "b", "c"):
            read.append(hit.passage.text)
            yield hit

    assert next(distinct(hits(), duplicates=0.5)).passage.text == "a"
    assert read == ["a"]
