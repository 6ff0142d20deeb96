"""Uploaded bytes -> a document, under the file's own id, name and attributes."""

from typing import Final

from rag_stack.errors import DocumentError
from rag_stack.index.documents import Document, parse
from rag_stack.index.spec import MAX_DOCUMENT_BYTES
from rag_stack.stores.store import FileError, StoreFile

# Nothing else is kept under these names: many documents in one file, of which a store has no use.
_UNSUPPORTED: Final = (".jsonl", ".parquet")
_CONVERTED: Final = (".pdf",)


class UnreadableFileError(Exception):
    """A file that cannot be indexed, however often it is tried."""

    def __init__(self, error: FileError) -> None:
        super().__init__(error.message)
        self.error = error


def parse_upload(data: bytes, file: StoreFile) -> Document:
    """The document of an uploaded file. Raises UnreadableFileError."""
    if len(data) > MAX_DOCUMENT_BYTES:
        # In words of the API: whoever uploads has no spec in which to raise a limit.
        message = f"has {len(data):,} bytes, and a file of a store at most {MAX_DOCUMENT_BYTES:,}; split it"
        raise UnreadableFileError(FileError(code="invalid_file", message=message))
    try:
        return parse(
            data,
            filename=file.filename,
            path=file.file_id,
            document_id=file.file_id,
            attributes=file.attributes,
            chunking=file.chunking,
        )
    except DocumentError as exc:
        name = file.filename.lower()
        binary = b"\0" in data and not name.endswith(_CONVERTED)
        code = "unsupported_file" if binary or name.endswith(_UNSUPPORTED) else "invalid_file"
        raise UnreadableFileError(FileError.model_validate({"code": code, "message": exc.message})) from exc
