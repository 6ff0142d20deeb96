"""Marker citations: which `[n]` is the model's marker, and which sentence it speaks for."""

import pytest

from rag_stack.rag.citations import Citer
from rag_stack.types import Hit, Passage, Source

LOCK = "A reentrant lock must be released by the thread that acquired it."


def sources(count: int = 3) -> tuple[Source, ...]:
    passages = [
        Passage(f"p{n}", "d", LOCK if n == 1 else f"Text {n}.", "t", "", 10 * n, 90) for n in range(1, count + 1)
    ]
    return tuple(Source(number=n, hit=Hit(passage=p, score=1.0)) for n, p in enumerate(passages, 1))


def marked(answer: str, *, count: int = 3) -> list[tuple[int, str]]:
    """The marker citations of an answer: source number and the sentence that it is given for."""
    citations = Citer().cite(answer, sources(count))
    return [(c.source, answer[c.answer_start : c.answer_end]) for c in citations if c.method == "marker"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Cows eat grass [1]. Pigs do not.", [(1, "Cows eat grass [1].")]),
        ("Cows eat grass. [2] Pigs do not.", [(2, "Cows eat grass. [2]")]),
        ("Cows eat grass. [2] says that pigs do not.", [(2, "[2] says that pigs do not.")]),
        ("Cows eat grass [1, 3].", [(1, "Cows eat grass [1, 3]."), (3, "Cows eat grass [1, 3].")]),
        ("Cows eat grass.[1][2]", [(1, "Cows eat grass.[1][2]"), (2, "Cows eat grass.[1][2]")]),
        ("According to [2], cows eat grass.", [(2, "According to [2], cows eat grass.")]),
        ("- Cows eat grass [1]\n- Pigs eat all [2]", [(1, "Cows eat grass [1]"), (2, "Pigs eat all [2]")]),
        ("Cows eat grass.\n\n[3]", [(3, "Cows eat grass.")]),
        ("Cows eat grass [9]. Pigs [0] eat all [1, 7].", [(1, "Pigs [0] eat all [1, 7].")]),
        ("Cows [1] eat grass [1].", [(1, "Cows [1] eat grass [1].")]),
    ],
)
def test_a_marker_speaks_for_its_sentence(answer: str, expected: list[tuple[int, str]]) -> None:
    assert marked(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "Take a[1] or list[0] of it.",
        "The matrix m[0][1] is square.",
        "Call f(x)[1] for the tail.",
        "Write x = [1, 2] first.",
        "Then sorted([1, 2]) is called.",
        "A nested [[1], [2]] list.",
        "See [1](https://example.org) for more.",
        "[1]: https://example.org",
        "Use `items [1]` here.",
        "As in\n\n```python\nprint(a, [1])\n```\n",
        "An unclosed fence\n```\nprint [1]\n",
        ">>> print [1]",
        "A footnote[^1] and a date [2024].",
    ],
)
def test_code_links_and_other_brackets_are_no_markers(answer: str) -> None:
    assert marked(answer) == []


def test_a_marker_split_over_chunks_is_found_in_the_joined_text() -> None:
    chunks = ["Cows eat grass", " [", "1", "]", ". Pigs", " do not."]

    assert marked("".join(chunks)) == [(1, "Cows eat grass [1].")]


def test_a_marker_quotes_the_whole_passage() -> None:
    (citation,) = Citer().cite("Cows eat grass [2].", sources())

    assert (citation.quote, citation.quote_start, citation.quote_end) == ("Text 2.", 20, 90)


def test_a_marked_sentence_gets_no_second_citation_of_the_same_source() -> None:
    same = Citer().cite(f"{LOCK[:-1]} [1].", sources())
    other = Citer().cite(f"{LOCK[:-1]} [2].", sources())

    assert [(c.method, c.source) for c in same] == [("marker", 1)]
    assert [(c.method, c.source) for c in other] == [("overlap", 1), ("marker", 2)]
