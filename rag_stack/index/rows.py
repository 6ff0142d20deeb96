"""Files of many documents, read piece by piece: JSON Lines by line, Parquet by row group."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, BinaryIO, Final, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from rag_stack.errors import DocumentError

# A row's number, from 1, and its fields or what is wrong with it.
Row: TypeAlias = tuple[int, Mapping[str, Any] | str]

FIELDS: Final = ("id", "title", "text", "uri", "attributes")
_PIECE_BYTES: Final = 8 << 20
_BATCH_BYTES: Final = 32 << 20
_MAX_BATCH_ROWS: Final = 1024


def too_large(size_bytes: int, limit_bytes: int) -> str:
    """Why a document is left out."""
    return f"has {size_bytes:,} bytes, the limit is {limit_bytes:,}; raise `max_document_bytes`, or split it"


def json_rows(file: BinaryIO, *, max_bytes: int) -> Iterator[Row]:
    """Each line that is not empty. A line over the limit is not held in memory. Blocking."""
    for number, line in enumerate(_lines(file, max_bytes), start=1):
        if isinstance(line, int):
            yield number, too_large(line, max_bytes)
        elif line.strip():
            yield number, _parsed(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def parquet_rows(file: BinaryIO, *, columns: Sequence[str]) -> Iterator[Row]:
    """Each row, of its columns for documents and the ones named. A value that is null is left out. Blocking.

    Raises DocumentError for a file that is none, or lacks `id` or `text`.
    """
    try:
        table = pq.ParquetFile(file, buffer_size=_PIECE_BYTES)
        names = table.schema_arrow.names
        missing = [name for name in ("id", "text") if name not in names]
        if missing:
            raise DocumentError(f"lacks the columns {missing}; it has {names}")
        wanted = [name for name in dict.fromkeys((*FIELDS, *columns)) if name in names]
        number = 0
        for group in range(table.num_row_groups):
            facts = table.metadata.row_group(group)
            each_bytes = max(1, facts.total_byte_size // max(1, facts.num_rows))
            size = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // each_bytes))
            for batch in table.iter_batches(size, row_groups=[group], columns=wanted, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch, row)
    except (pa.ArrowException, OSError) as exc:
        raise DocumentError(f"is not a Parquet file that can be read: {exc}") from exc


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes | int]:
    """The lines, and of one over the limit its size."""
    held, size = bytearray(), 0
    while piece := file.read(_PIECE_BYTES):
        parts = piece.split(b"\n")
        for place, part in enumerate(parts):
            size += len(part)
            if size <= max_bytes:
                held += part
            else:
                held.clear()
            if place < len(parts) - 1:
                yield bytes(held) if size <= max_bytes else size
                held, size = bytearray(), 0
    if size:
        yield bytes(held) if size <= max_bytes else size


def _parsed(line: bytes) -> Mapping[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        return f"is not a JSON line: {exc}"
    return row if isinstance(row, dict) else f"is a JSON {type(row).__name__}, expected an object"


def _row(batch: pa.RecordBatch, number: int) -> Mapping[str, Any] | str:
    try:
        row = {name: batch.column(name)[number].as_py() for name in batch.schema.names}
    except (ValueError, KeyError) as exc:
        return f"cannot be read: {exc}"
    attributes = row.get("attributes")
    if isinstance(attributes, list):
        # A map comes as pairs.
        attributes = dict(attributes)
    if isinstance(attributes, dict):
        row["attributes"] = {key: _plain(value) for key, value in attributes.items() if value is not None}
    return {key: _plain(value) for key, value in row.items() if value is not None}


def _plain(value: object) -> object:
    """Dates as ISO text, which is ordered as they are."""
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return float(value)
        case _:
            return value
