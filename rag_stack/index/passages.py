"""The passages of an index version: an Arrow table that stays on disk until a row is read."""

import mmap
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rag_stack.errors import IndexVersionError
from rag_stack.index.format import PASSAGES_SCHEMA, attribute_key
from rag_stack.types import Passage

_FIELDS: Final = tuple(PASSAGES_SCHEMA.names)


class PassageTable:
    """Passages by row; row i belongs to vector i of the index."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._columns = {name: table.column(name) for name in _FIELDS}
        # A key may have a column for each type, of which at most one is set in a row.
        self._attributes = [
            (key, table.column(name)) for name in table.column_names if (key := attribute_key(name)) is not None
        ]

    @classmethod
    def open(cls, path: Path) -> "PassageTable":
        """Map a `passages.arrow`. Raises IndexVersionError."""
        return cls(open_table(path, schema=PASSAGES_SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def get(self, row: int) -> Passage:
        """One passage; reads its part of the file. Raises IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} passages")
        fields = {name: column[row].as_py() for name, column in self._columns.items()}
        values = ((key, column[row].as_py()) for key, column in self._attributes)
        return Passage(**fields, attributes={key: value for key, value in values if value is not None})

    def file_ids(self) -> list[str]:
        """The ids of the documents, in the order of the index."""
        ids: list[str] = pc.unique(self._columns["document_id"]).to_pylist()
        return ids

    def document(self, document_id: str) -> list[Passage]:
        """A document's passages in reading order; none when there is no such document."""
        rows = self.rows_of(document_id)
        return sorted((self.get(int(row)) for row in rows), key=lambda passage: passage.start)

    def rows_of(self, document_id: str) -> npt.NDArray[np.int64]:
        """The rows of a document, ascending."""
        matches = pc.equal(self._columns["document_id"], document_id)
        return np.flatnonzero(matches.to_numpy()).astype(np.int64)


def open_table(path: Path, *, schema: pa.Schema) -> pa.Table:
    """Map an Arrow IPC file that has at least the schema's fields. Raises IndexVersionError."""
    try:
        table = _map(path)
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise IndexVersionError(
            f"cannot read {str(path)!r} as an Arrow file: {exc}; it is truncated or not an index version's: "
            "delete the cached copy, or build the index again"
        ) from exc
    missing = [field.name for field in schema if field not in table.schema]
    if missing:
        raise IndexVersionError(
            f"{str(path)!r} lacks the columns {missing}; build the index again with `rag-stack index build`"
        )
    return table


def _map(path: Path) -> pa.Table:
    with path.open("rb") as file:
        # Its buffers keep the mapping open for as long as anything of the table is in use.
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    # Opening touches a page here and there, for which the kernel would read megabytes around each: 50 ms for a cold
    # file of 45 MB, and not 2. What is read later lies together.
    mapping.madvise(mmap.MADV_RANDOM)
    table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapping))).read_all()
    table.validate()
    mapping.madvise(mmap.MADV_NORMAL)
    return table
