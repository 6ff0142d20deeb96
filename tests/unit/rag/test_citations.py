"""Overlap citations: what a passage says is cited with a verbatim span, and what it does not say is not."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_stack.errors import ConfigError
from rag_stack.rag import citations
from rag_stack.rag.citations import Citer
from rag_stack.rag.overlap import is_foreign
from rag_stack.rag.sentences import split_sentences
from rag_stack.types import Hit, Passage, Source

WITH = """The "with" statement is used to wrap the execution of a block with
methods defined by a context manager (see section With Statement
Context Managers). This allows common "try"…"except"…"finally" usage
patterns to be encapsulated for convenient reuse.

4. The context manager’s "__enter__()" method is invoked.

5. If a target was included in the "with" statement, the return value
   from "__enter__()" is assigned to it."""
BISECT = """Return the index where to insert item x in list a, assuming a is sorted.

Optional args lo (default 0) and hi (default len(a)) bound the
slice of a to be searched."""
VARIANCE = "Return the square root of the sample variance.\n\nSee ``variance`` for arguments and other details."
LOCK = """A reentrant lock must be released by the thread that acquired it. Once a
thread has acquired a reentrant lock, the same thread may acquire it again
without blocking. The cache keeps at most 128 results after the last call."""


def source(number: int, text: str, *, title: str = "guide", start: int = 700) -> Source:
    passage = Passage(
        passage_id=f"p{number}", document_id="d", text=text, title=title, uri="", start=start, end=start + len(text)
    )
    return Source(number=number, hit=Hit(passage=passage, score=0.5))


SOURCES = (
    source(1, WITH, title='The "with" statement'),
    source(2, BISECT, title="bisect.bisect_left"),
    source(3, VARIANCE, title="statistics.stdev"),
    source(4, LOCK, title="threading.RLock"),
)


@pytest.mark.parametrize(
    ("sentence", "number", "quoted"),
    [
        ("The with statement wraps the execution of a block with methods defined by a context manager.", 1, "wrap the"),
        ("If a target was included, the return value from `__enter__()` is assigned to it.", 1, "__enter__()"),
        ("It returns the index where to insert item x in list a, assuming a is sorted.", 2, "Return the index"),
        ("A reentrant lock must be released by the thread that acquired it.", 4, "A reentrant lock must"),
        ("The cache keeps at most 128 results after the last call.", 4, "at most 128 results"),
    ],
)
def test_what_a_passage_says_is_cited_with_its_own_words(sentence: str, number: int, quoted: str) -> None:
    answer = f"Here is what I found. {sentence} I hope that helps!"

    (citation,) = Citer().cite(answer, SOURCES)

    passage = SOURCES[number - 1].hit.passage
    assert (citation.method, citation.source) == ("overlap", number)
    assert answer[citation.answer_start : citation.answer_end] == sentence
    assert quoted in citation.quote
    assert citation.quote == passage.text[citation.quote_start - 700 : citation.quote_end - 700]


@pytest.mark.parametrize(
    "sentence",
    [
        pytest.param("The function returns a value.", id="generic vocabulary"),
        pytest.param("I do not know, the documents do not contain the answer.", id="refusal"),
        pytest.param("What does the with statement wrap the execution of a block with methods for?", id="question"),
        pytest.param("The first emperor of Rome was Augustus, who ruled until his death.", id="unrelated"),
        pytest.param("Insert sorted assuming list index, return item where x.", id="shuffled words"),
        pytest.param("The cache keeps at most 256 results after the last call.", id="another number"),
        pytest.param("The cache keeps at most 128 results before the last call.", id="another polar word"),
        pytest.param("A reentrant lock must not be released by the thread that acquired it.", id="negated"),
        pytest.param("The `__exit__()` return value is assigned to the included target.", id="another identifier"),
        pytest.param("`statistics.pstdev` returns the square root of the sample variance.", id="another subject"),
        pytest.param("It returns the square root of the population variance of data.", id="a word replaced"),
    ],
)
def test_what_no_passage_says_is_not_cited(sentence: str) -> None:
    assert Citer().cite(sentence, SOURCES) == ()


def test_a_denied_passage_does_not_support_what_it_denies() -> None:
    denied = source(1, "The sort method does not return the sorted sequence to its caller.")

    assert Citer().cite("The sort method does return the sorted sequence to its caller.", [denied]) == ()
    assert len(Citer().cite("The sort method doesn't return the sorted sequence to its caller.", [denied])) == 1


def test_every_source_that_says_it_is_cited_and_nothing_else() -> None:
    answer = "A reentrant lock must be released by the thread that acquired it."
    sources = (source(1, LOCK), source(2, WITH), source(3, LOCK, start=0))

    assert [citation.source for citation in Citer().cite(answer, sources)] == [1, 3]


def test_words_strewn_over_a_passage_are_no_support() -> None:
    filler = "while several unrelated remarks about maintenance, licensing and history follow at great length here,"
    text = f"The instance {filler} is created {filler} from another class {filler} by a factory."

    assert Citer().cite("The instance is created from another class by a factory.", [source(1, text)]) == ()


def test_a_listing_gets_no_overlap_citation() -> None:
    answer = "```text\nA reentrant lock must be released by the thread that acquired it.\n```"

    assert Citer().cite(answer, SOURCES) == ()


@pytest.mark.parametrize(("answer", "sources"), [("", SOURCES), ("   \n", SOURCES), (BISECT, ())])
def test_nothing_in_nothing_out(answer: str, sources: tuple[Source, ...]) -> None:
    assert Citer().cite(answer, sources) == ()


@pytest.mark.parametrize("settings_", [{"threshold": 0.0}, {"threshold": 1.1}, {"min_words": 0}])
def test_settings_that_would_cite_everything_are_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        Citer(**settings_)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([WITH, BISECT, LOCK, " [1]", "[2, 9]", "`a[1]`", "\n```\n", "- ", "\n\n", "é€ "])))
def test_offsets_are_true_whatever_the_answer(parts: list[str]) -> None:
    answer = "".join(parts)

    citations = Citer().cite(answer, SOURCES)

    assert list(citations) == sorted(citations, key=lambda c: (c.answer_start, c.source))
    assert len({(c.answer_start, c.source) for c in citations}) == len(citations)
    for citation in citations:
        passage = SOURCES[citation.source - 1].hit.passage
        assert 0 <= citation.answer_start < citation.answer_end <= len(answer)
        assert passage.text[citation.quote_start - 700 : citation.quote_end - 700] == citation.quote != ""


def test_the_labelled_answers_are_whole() -> None:
    data = Path(__file__).parents[3] / "loadtests" / "data"
    rows = [json.loads(line) for line in (data / "citations.jsonl").read_text(encoding="utf-8").split("\n") if line]
    passages = sum(bool(line) for line in (data / "citations_passages.jsonl").read_text(encoding="utf-8").split("\n"))

    questions = {split: {row["question"] for row in rows if row["split"] == split} for split in ("dev", "test")}
    assert not questions["dev"] & questions["test"]
    for row in rows:
        assert all(0 <= place < passages for place in row["passages"])
        for sentence in row["sentences"]:
            assert row["answer"][sentence["start"] : sentence["end"]].strip()
            assert set(sentence["supported_by"]) <= set(range(1, len(row["passages"]) + 1))
            assert row["related"] or not sentence["supported_by"]


_DATA = Path(__file__).parents[3] / "loadtests" / "data"
_PASSAGES = [json.loads(line) for line in (_DATA / "citations_passages.jsonl").read_text("utf-8").splitlines()[:40]]
_READ = tuple(source(n, each["text"], title=each["title"]) for n, each in enumerate(_PASSAGES))
_SENTENCES = [each.hit.passage.text[slice(*span)] for each in _READ for span in split_sentences(each.hit.passage.text)]
_WORDS = sorted({word for each in _READ for word in each.hit.passage.text.split()})
_FOREIGN = ["lighthouse", "zymurgies", "Zyxwv", "__zyx__", "4711", "naïve", "seven", "K", "lamps’", "function"]
_EDITS = st.sampled_from(["keep", "insert foreign", "insert said", "replace", "drop", "inflect", "inflect"])


@st.composite
def _answers(draw: st.DrawFn) -> tuple[str, list[Source]]:
    """What passages say, a few words changed, and those passages and others."""
    chosen = draw(st.lists(st.sampled_from(_READ), min_size=1, max_size=3, unique_by=lambda each: each.number))
    said = []
    for each in chosen:
        text = each.hit.passage.text
        words = text[slice(*draw(st.sampled_from(split_sentences(text))))].split()
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(words)))
            match draw(_EDITS):
                case "insert foreign":
                    words.insert(at, draw(st.sampled_from(_FOREIGN)))
                case "insert said":
                    words.insert(at, draw(st.sampled_from(_WORDS)))
                case "replace":
                    words[at : at + 1] = [draw(st.sampled_from(_WORDS))]
                case "drop":
                    words[at : at + 1] = []
                case "inflect":
                    words[at : at + 1] = [_inflected(word) for word in words[at : at + 1]]
        said.append(" ".join(words))
    return ".\n\n".join([*said, draw(st.sampled_from(_SENTENCES))]), chosen


def _inflected(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word[:-3] + "y" if word.endswith("ies") else word + "s"


@settings(max_examples=150, deadline=None)
@given(_answers(), st.sampled_from([0.3, 0.6, 0.8, 1.0]), st.integers(1, 4))
def test_a_sentence_that_is_left_out_unread_has_no_citation(
    asked: tuple[str, list[Source]], threshold: float, min_words: int
) -> None:
    citer = Citer(threshold=threshold, min_words=min_words)
    quick = citer.cite(*asked)
    with patch.object(citations, "is_foreign", lambda *_, **__: False):
        assert citer.cite(*asked) == quick


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Lighthouses have had a keeper since the first lamp was lit.", True),
        ("A reentrant lock must be released by the lighthouse.", True),
        ("A reentrant lock must be released by the thread that acquired it.", False),
        ("A reentrant lighthouse lock must be released by the thread that acquired it.", False),
        ("", True),
    ],
)
def test_foreign_is_what_begins_or_ends_with_what_nobody_says(sentence: str, expected: bool) -> None:
    assert is_foreign(sentence, LOCK.lower(), threshold=0.8) is expected


@pytest.mark.parametrize(
    ("passage", "sentence"),
    [
        ("Queries of large tables are answered by sorted copies.", "Query of large tables answered by sorted copy."),
        ("Copies of sorted tables answer large queries.", "Copy of sorted tables answers large query."),
        ("Four keepers light the lamps at the northern tower.", "4 keepers light the lamps at the northern tower."),
        ("Keepers light four lamps at the northern tower.", "Keeper lights 4 lamps at the northern tower."),
    ],
)
def test_another_form_of_a_word_is_not_foreign(passage: str, sentence: str) -> None:
    assert len(Citer().cite(sentence, [source(1, passage)])) == 1
