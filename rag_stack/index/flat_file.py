"""Vectors in a file that is a FAISS flat index at any time it is closed: appended to, then mapped, never held whole."""

import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

_FLOAT_BYTES: Final = 4
# In FAISS's header: after four letters and the dimension comes the number of vectors, and last the number of floats.
_COUNT_AT: Final = 8
_SIZE_BYTES: Final = 8


class FlatFile:
    """Float32 vectors of inner products, in FAISS's own file format: what an index of the recipe Flat is."""

    def __init__(self, path: Path, *, dimension: int) -> None:
        """Create the file. Raises OSError."""
        self.path = path
        self.dimension = dimension
        self.count = 0
        self._header = _header(dimension)
        self._file = path.open("wb")
        self._file.write(self._header)

    def append(self, vectors: Vectors) -> None:
        """Add vectors [n, dimension]. Raises OSError when the disk is full."""
        self._file.write(np.ascontiguousarray(vectors, np.float32).data)
        self.count += len(vectors)

    def complete(self) -> None:
        """Write the counts and close: the file is a flat index now. Raises OSError."""
        self._file.seek(_COUNT_AT)
        self._file.write(struct.pack("<q", self.count))
        self._file.seek(len(self._header) - _SIZE_BYTES)
        self._file.write(struct.pack("<Q", self.count * self.dimension))
        self._file.close()
        index = self.index()
        size = self.path.stat().st_size
        expected = len(self._header) + self.count * self.dimension * _FLOAT_BYTES
        if (index.ntotal, index.d, index.metric_type, size) != (self.count, self.dimension, _METRIC, expected):
            raise OSError(f"{str(self.path)!r} holds {index.ntotal} vectors in {size} bytes, {self.count} were written")

    def index(self) -> faiss.Index:
        """The file as a FAISS index, mapped: its vectors are read from the disk as they are looked at."""
        return faiss.read_index(str(self.path), faiss.IO_FLAG_MMAP_IFC)

    def vectors(self) -> Vectors:
        """The vectors [count, dimension], mapped; they do not lie on the boundaries of floats: copy a block to work."""
        shape = (self.count, self.dimension)
        return np.memmap(self.path, np.float32, mode="r", offset=len(self._header), shape=shape)

    def close(self) -> None:
        """Close without completing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_METRIC: Final = faiss.METRIC_INNER_PRODUCT


def _header(dimension: int) -> bytes:
    """The header that this FAISS writes, with counts of none."""
    index = faiss.IndexFlat(dimension, _METRIC)
    index.add(np.zeros((1, dimension), np.float32))
    header = bytearray(bytes(faiss.serialize_index(index))[: -dimension * _FLOAT_BYTES])
    counts = struct.unpack_from("<q", header, _COUNT_AT)[0], struct.unpack_from("<Q", header, len(header) - 8)[0]
    if counts != (1, dimension):
        raise RuntimeError(f"FAISS {faiss.__version__} writes flat indexes in another form: counts {counts}")
    struct.pack_into("<q", header, _COUNT_AT, 0)
    struct.pack_into("<Q", header, len(header) - _SIZE_BYTES, 0)
    return bytes(header)
