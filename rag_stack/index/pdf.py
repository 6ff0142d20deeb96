"""PDF -> text, page by page."""

import re
from threading import Lock
from typing import Final

from rag_stack.errors import DocumentError

# PDFium may be used by one thread at a time; several processes may read at once.
_LOCK: Final = Lock()
# PDFium puts this where a word goes on in the next line, whatever hyphen was there.
_BROKEN_WORD: Final = re.compile(r"[\ufffe\x02\xad]\s*")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def to_text(data: bytes, *, max_chars: int) -> str:
    """The text of a PDF: pages with a blank line between them. Blocking; one at a time in a process.

    Raises DocumentError with the reason: encrypted, broken, only images, or more than `max_chars`.
    """
    with _LOCK:
        pages = _pages(data, max_chars)
    texts = [_CONTROL.sub("", _BROKEN_WORD.sub("", page).replace("\r\n", "\n").replace("\r", "\n")) for page in pages]
    text = "\n\n".join(stripped for page in texts if (stripped := page.strip()))
    if not text:
        raise DocumentError(f"has no text on its {len(pages)} pages, only images; run OCR over it first")
    return text + "\n"


def _pages(data: bytes, max_chars: int) -> list[str]:
    from pypdfium2 import PdfDocument, PdfiumError  # type: ignore[import-untyped]

    pages: list[str] = []
    try:
        document = PdfDocument(data)
    except PdfiumError as exc:
        if "password" in str(exc).lower():
            raise DocumentError("is encrypted; save it without a password") from exc
        raise DocumentError(f"is not a PDF that can be read: {exc}") from exc
    try:
        left = max_chars
        for number in range(len(document)):
            page = document[number]
            text_page = page.get_textpage()
            pages.append(text_page.get_text_range())
            text_page.close()
            page.close()
            left -= len(pages[-1])
            if left < 0:
                raise DocumentError(
                    f"has more than {max_chars:,} characters of text; raise `max_document_bytes`, or split it"
                )
    except PdfiumError as exc:
        raise DocumentError(f"is broken at page {len(pages) + 1}: {exc}; save it anew") from exc
    finally:
        # Not left to the garbage collector, which runs in any thread.
        document.close()
    return pages
