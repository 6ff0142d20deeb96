"""What a citation needs beside shared words: the same subject, the same limits, and the whole of the sentence."""

import pytest

from rag_stack.rag.citations import Citer
from rag_stack.rag.subjects import headed_sentences, last_named, points_back
from rag_stack.types import Hit, Passage, Source

LOCKS = """threading.RLock()
    Return a new reentrant lock owned by the calling thread.

threading.Semaphore(value=1)
    Return a new counting semaphore with an initial value."""
RETURN = 'A "return" statement outside a function is reported as a syntax error by the compiler.'
FILES = "The temporary file is removed automatically from the disk if its handle was closed by the program."


def source(text: str, *, title: str = "guide") -> Source:
    passage = Passage(passage_id="p", document_id="d", text=text, title=title, uri="", start=0, end=len(text))
    return Source(number=1, hit=Hit(passage=passage, score=0.5))


@pytest.mark.parametrize(
    ("answer", "text", "cited"),
    [
        ("`threading.RLock` is a lock. It returns a new reentrant lock owned by the calling thread.", LOCKS, True),
        ("`re.purge` clears a cache. It returns a new reentrant lock owned by the calling thread.", LOCKS, False),
        ("`threading.Semaphore` returns a new reentrant lock owned by the calling thread.", LOCKS, False),
        ("`threading.Semaphore` returns a new counting semaphore with an initial value.", LOCKS, True),
        ('A "return" statement outside a function is reported as a syntax error by the compiler.', RETURN, True),
        ('A "return" statement is reported as a syntax error by the compiler.', RETURN, False),
        (FILES, FILES, True),
        ("The temporary file is removed automatically from the disk.", FILES, False),
        (FILES.removesuffix(".") + " and archived.", FILES, False),
    ],
)
def test_a_citation_needs_subject_limits_and_all_of_the_sentence(answer: str, text: str, cited: bool) -> None:
    assert bool(Citer().cite(answer, [source(text)])) is cited


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("It returns a list.", True),
        ("The function draws from `random`.", True),
        pytest.param(
            "The function returns `None`.",
            True,
            marks=pytest.mark.xfail(
                strict=True, reason='verbs such as "returns" are taken for nouns; mend it with a new test split'
            ),
        ),
        ("The returned list is sorted.", True),
        ("The function `sorted` returns a list.", False),
        ("The return value of bisect.bisect_left is an index.", False),
        ("The with statement wraps a block.", False),
        ("Locks are released.", False),
        ("", False),
    ],
)
def test_which_sentences_point_back(sentence: str, expected: bool) -> None:
    assert points_back(sentence) is expected


def test_the_last_name_is_that_of_a_sentence_with_a_subject_of_its_own() -> None:
    assert last_named("`random.sample` draws. `json.loads` parses text. It calls `str`.") == {"json", "load"}
    assert last_named("Nothing here has a name.") == frozenset()


def test_a_sentence_stands_under_the_signature_above_it() -> None:
    found = [(LOCKS[start:end], set(names)) for (start, end), names in headed_sentences(LOCKS)]

    assert ("Return a new reentrant lock owned by the calling thread.", {"thread", "rlock"}) in found
    assert ("Return a new counting semaphore with an initial value.", {"thread", "semaphor"}) in found
