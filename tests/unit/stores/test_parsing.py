"""Uploaded bytes: what cannot be indexed is told in words of the API."""

import pytest

from rag_stack.index.spec import MAX_DOCUMENT_BYTES
from rag_stack.stores.parsing import UnreadableFileError, parse_upload
from rag_stack.stores.store import StoreFile


def test_a_file_that_is_too_large_is_to_be_split() -> None:
    size_bytes = MAX_DOCUMENT_BYTES + 1
    file = StoreFile(file_id="file-1", filename="a.txt", size_bytes=size_bytes, created_at=0, generation=1)
    with pytest.raises(
        UnreadableFileError, match=r"has 33,554,433 bytes, and a file of a store at most 33,554,432; split it$"
    ):
        parse_upload(b"x" * size_bytes, file)
