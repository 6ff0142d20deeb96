"""Passages and documents on their way into the files of an index version; a batch of each is in memory, no more."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from rag_stack.index.documents import Document
from rag_stack.index.format import (
    DOCUMENTS_SCHEMA,
    PASSAGES_SCHEMA,
    attribute_column,
    attribute_field,
    type_name,
)
from rag_stack.types import AttributeValue, Passage

_ROWS_PER_BATCH: Final = 65_536
# A whole document may be one passage: a batch ends earlier when its texts are long.
_BATCH_BYTES: Final = 64 << 20
_ROWS_PER_SPOOLED: Final = 4_096
_SPOOLED_CHARACTERS: Final = 4 << 20
_ATTRIBUTES: Final = "attributes"
_FIELDS: Final = tuple(PASSAGES_SCHEMA.names)


class PassageSpool:
    """Passages in a stream, until all are there and it is known which attribute columns the file has."""

    def __init__(self, path: Path) -> None:
        """Create the stream. Raises OSError."""
        self._path = path
        self._schema = PASSAGES_SCHEMA.append(pa.field(_ATTRIBUTES, pa.large_string()))
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)
        self._attributes: set[tuple[str, str]] = set()
        self._rows: list[dict[str, Any]] = []
        self._characters = 0
        self.count = 0

    def append(self, passages: Sequence[Passage]) -> None:
        """Add passages. Raises OSError when the disk is full."""
        for passage in passages:
            row = {name: getattr(passage, name) for name in _FIELDS}
            self._rows.append(row | {_ATTRIBUTES: json.dumps(dict(passage.attributes), ensure_ascii=False)})
            self._attributes.update((key, type_name(value)) for key, value in passage.attributes.items())
            self._characters += len(passage.text) + len(passage.title) + len(passage.uri)
            self.count += 1
            if len(self._rows) >= _ROWS_PER_SPOOLED or self._characters >= _SPOOLED_CHARACTERS:
                self._flush()

    def complete(self, path: Path) -> None:
        """Write the passages with a column for each attribute and type: `passages.arrow`. Raises OSError."""
        self._flush()
        self.close()
        columns = sorted(self._attributes)
        schema = PASSAGES_SCHEMA
        for key, type_ in columns:
            schema = schema.append(attribute_field(key, type_))
        with (
            pa.memory_map(str(self._path)) as spooled,
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, schema) as writer,
        ):
            for batch in _batches(pa.ipc.open_stream(spooled)):
                writer.write_batch(_with_columns(batch, columns, schema))

    def close(self) -> None:
        """Close the stream, if it is not. Raises OSError when the disk is full."""
        if not self._file.closed:
            with self._file:
                self._stream.close()

    def _flush(self) -> None:
        if self._rows:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows, self._characters = [], 0


class DocumentFile:
    """`documents.arrow` as it is written, a row for each document."""

    def __init__(self, path: Path) -> None:
        """Create the file. Raises OSError."""
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, DOCUMENTS_SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def append(self, document: Document, *, first_row: int, passages: int) -> None:
        """Add a document. Raises OSError when the disk is full."""
        self._rows.append(
            {
                "document_id": document.document_id,
                "filename": str(document.attributes.get("filename", "")),
                "title": document.title,
                "uri": document.uri,
                "digest": document.digest,
                "characters": len(document.text),
                "first_row": first_row,
                "passages": passages,
            }
        )
        self.count += 1
        if len(self._rows) >= _ROWS_PER_BATCH:
            self._flush()

    def complete(self) -> None:
        """Write what is left and close. Raises OSError."""
        self._flush()
        self.close()

    def close(self) -> None:
        """Close the file, if it is not. Raises OSError when the disk is full."""
        if not self._file.closed:
            with self._file:
                self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=DOCUMENTS_SCHEMA))
            self._rows = []


def _batches(spooled: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches joined to the file's."""
    waiting: list[pa.RecordBatch] = []
    for batch in spooled:
        rows, size = sum(each.num_rows for each in waiting), sum(each.nbytes for each in waiting)
        if waiting and (rows + batch.num_rows > _ROWS_PER_BATCH or size + batch.nbytes > _BATCH_BYTES):
            yield pa.concat_batches(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield pa.concat_batches(waiting)


def _with_columns(batch: pa.RecordBatch, columns: Sequence[tuple[str, str]], schema: pa.Schema) -> pa.RecordBatch:
    values: dict[str, list[AttributeValue | None]] = {attribute_column(*column): [] for column in columns}
    text, attributes = "", {}
    for each in batch.column(_ATTRIBUTES):
        # Passages of a document follow each other and have the same.
        if (found := each.as_py()) != text:
            text, attributes = found, json.loads(found)
        for key, type_ in columns:
            value = attributes.get(key)
            typed = value if value is not None and type_name(value) == type_ else None
            values[attribute_column(key, type_)].append(typed)
    fixed = [batch.column(name) for name in PASSAGES_SCHEMA.names]
    made = [pa.array(values[name], schema.field(name).type) for name in values]
    return pa.RecordBatch.from_arrays([*fixed, *made], schema=schema)
