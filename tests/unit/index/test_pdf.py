"""Real PDF files -> text."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rag_stack.errors import DocumentError
from rag_stack.index.pdf import to_text
from tests.pdf import pdf


def test_pages_have_a_blank_line_between_them() -> None:
    data = pdf([["First page (one)", "goes on."], ["Café in a second."]])
    assert to_text(data, max_chars=1000) == "First page (one)\ngoes on.\n\nCafé in a second.\n"


def test_a_word_that_goes_on_in_the_next_line_is_whole() -> None:
    assert to_text(pdf([["This is an exam-", "ple of it."]]), max_chars=1000) == "This is an example of it.\n"


def test_a_page_without_text_leaves_no_gap() -> None:
    assert to_text(pdf([["one"], [], ["two"]]), max_chars=1000) == "one\n\ntwo\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pdf([[], []]), "has no text on its 2 pages, only images; run OCR"),
        (pdf([["secret"]], encrypted=True), "is encrypted; save it without a password"),
        (b"%PDF-1.7 but no more", "is not a PDF that can be read"),
        (pdf([["cut off"]])[:150], "is not a PDF that can be read"),
        (b"PK\x03\x04", "is not a PDF that can be read"),
        (pdf([["x" * 80]] * 3), "has more than 100 characters of text; raise `max_document_bytes`"),
    ],
    ids=["images", "encrypted", "junk", "cut", "zip", "long"],
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        to_text(data, max_chars=100)


def test_several_threads_may_read_at_once() -> None:
    files = [pdf([[f"file {number} page {page}"] for page in range(20)]) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda data: to_text(data, max_chars=10_000), files))
    for number, text in enumerate(texts):
        assert text.split("\n\n") == [f"file {number} page {page}" for page in range(19)] + [f"file {number} page 19\n"]
