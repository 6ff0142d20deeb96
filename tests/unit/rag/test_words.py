"""The words of a sentence, read in one go: what carries its claim, and what limits it."""

import pytest

from rag_stack.rag.words import content_words, qualifiers, read_words


def test_both_are_read_in_one_go() -> None:
    text = "Unless `close` is called, the file may not be read twice."
    words, limits = read_words(text)
    assert words == content_words(text)
    assert limits == qualifiers(text) == {"if", "may"}


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("It is not called here.", {"call"}),
        ("It doesn’t close files.", {"close", "fil"}),
        ("The `not` operator.", set()),
    ],
)
def test_a_negation_speaks_of_the_words_after_it(text: str, negated: set[str]) -> None:
    assert {word.stem[:3] for word in content_words(text) if word.negated} == {each[:3] for each in negated}


@pytest.mark.parametrize("written", ["open(path)", "io.open", "open.read", "`open`", '"open"', "“open”"])
def test_what_is_beside_a_word_makes_it_code(written: str) -> None:
    (word,) = (word for word in content_words(f"Call {written} first") if word.stem == "open")
    assert word.identifier
    assert word.exact


def test_the_same_word_in_prose_is_no_code() -> None:
    for text in ("Open.", "Doors open. Then", "(open)", "open, then shut"):
        assert not any(word.identifier for word in content_words(text))


def test_a_quoted_stop_word_is_a_name_and_limits_nothing() -> None:
    assert [word.stem for word in content_words('the "if" clause')] == ["if", "claus"]
    assert qualifiers('the "if" clause') == frozenset()
    assert qualifiers("if it is called") == {"if"}
