"""Uploaded bytes -> documents, under the file's own id, name and attributes."""

from typing import Final

from rag_stack.index.documents import Document
from rag_stack.stores.store import FileError, StoreFile

# Attributes that documents have beside those given to their file.
OURS: Final = frozenset({"filename", "path"})
_MARKDOWN = (".md", ".markdown")


class UnreadableFileError(Exception):
    """A file that cannot be indexed, however often it is tried."""

    def __init__(self, error: FileError) -> None:
        super().__init__(error.message)
        self.error = error


def uploaded_id(document_id: str) -> str:
    """The file that a document came from: one may hold several documents, `<file>#<name>` each."""
    return document_id.partition("#")[0]


def parse_upload(data: bytes, file: StoreFile) -> list[Document]:
    """The documents of an uploaded file. Raises UnreadableFileError."""
    if b"\0" in data:
        raise UnreadableFileError(FileError(code="unsupported_file", message="is binary: it holds NUL bytes"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        message = f"is not UTF-8 (byte {exc.start}); convert it"
        raise UnreadableFileError(FileError(code="invalid_file", message=message)) from exc
    if not text.strip():
        raise UnreadableFileError(FileError(code="invalid_file", message="is empty"))
    return [
        Document(
            document_id=file.file_id,
            text=text,
            title=file.filename,
            uri="",
            attributes={"filename": file.filename, **file.attributes},
            text_format="markdown" if file.filename.lower().endswith(_MARKDOWN) else "text",
            chunking=file.chunking,
        )
    ]
