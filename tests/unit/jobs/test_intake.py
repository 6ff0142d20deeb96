"""What comes into a build, and what is left out of it."""

from collections.abc import Iterator
from typing import Literal

import pytest

from rag_stack.errors import DocumentError, IndexVersionError
from rag_stack.index.documents import Document
from rag_stack.index.format import MAX_SKIPPED, Chunking, Skipped
from rag_stack.jobs.intake import Intake
from tests.embedder import WordEmbedder

PAGE = Document("a", "rye bread", "a.txt", "")


def intake(*found: Document | Skipped, on_error: Literal["skip", "fail"] = "skip") -> Intake:
    return Intake(found, model=WordEmbedder(), chunking=Chunking(), on_error=on_error)


def taken(intake: Intake) -> list[str]:
    return [cut.document.document_id for window, _ in intake.windows(lambda _: None) for cut in window]


def unread(count: int) -> Iterator[Skipped]:
    return (Skipped(document=f"{number}.txt", reason="is empty") for number in range(count))


def test_a_source_that_is_all_wrong_is_counted_and_its_beginning_named() -> None:
    source = intake(PAGE, *unread(MAX_SKIPPED + 500))
    assert taken(source) == ["a"]
    assert source.skipped == tuple(unread(MAX_SKIPPED))
    assert source.skipped_documents == MAX_SKIPPED + 500


def test_what_is_blank_or_has_an_id_again_is_left_out() -> None:
    source = intake(PAGE, PAGE, Document("b", " \n", "b.txt", "", {"path": "b.txt"}))
    assert taken(source) == ["a"]
    assert [(each.document, each.reason) for each in source.skipped] == [
        ("a", "its id was used by an earlier document"),
        ("b.txt", "has no words"),
    ]


def test_with_fail_the_first_ends_it() -> None:
    with pytest.raises(DocumentError, match=r"cannot index '0\.txt': it is empty; .*`on_error: skip`"):
        taken(intake(*unread(2), on_error="fail"))


def test_a_source_without_a_document_says_what_was_left_out() -> None:
    source = intake(*unread(7))
    assert taken(source) == []
    with pytest.raises(IndexVersionError, match=r"7 were left out \(0\.txt: is empty; .*4\.txt: is empty\)"):
        source.require_some("notes")
    with pytest.raises(IndexVersionError, match="the source has none"):
        intake().require_some("notes")
