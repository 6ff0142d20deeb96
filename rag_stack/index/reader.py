"""One open index version: its vectors and passages are mapped, not loaded, and shared by all processes of a node."""

import mmap
import os
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from rag_stack.artifacts.manifest import Manifest
from rag_stack.errors import EmbedderMismatchError, IndexVersionError
from rag_stack.index.format import DOCUMENTS_FILE, DOCUMENTS_SCHEMA, INDEX_FILE, PASSAGES_FILE, IndexMetadata
from rag_stack.index.passages import PassageTable, open_table
from rag_stack.index.selector import selecting

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

# Linux 5.14; Python 3.11 has no name for it.
_MADV_POPULATE_READ: Final = 22
# CPython holds its lock during madvise: in pieces, so that other threads run in between.
_PIECE_BYTES: Final = 64 * 1024 * 1024


def set_search_threads(threads: int) -> None:
    """How many threads FAISS takes for a search or a build that the calling thread starts. Every thread has its own."""
    faiss.omp_set_num_threads(threads)


class IndexVersion:
    """An index version that is ready to be searched. Searches may run in several threads at once."""

    def __init__(self, index: faiss.Index, passages: PassageTable, manifest: Manifest, *, path: Path) -> None:
        self._index = index
        self._path = path
        self.passages = passages
        self.metadata = IndexMetadata.of(manifest)
        self.name = manifest.name
        self.version = manifest.version
        self.embedder_digest = self.metadata.embedder.digest
        self.dimension = self.metadata.dimension
        self.document_count = self.metadata.documents
        self.usage_bytes = manifest.size_bytes

    @classmethod
    def open(cls, path: Path, manifest: Manifest, *, embedder_digest: str | None) -> "IndexVersion":
        """Map an index version from its verified directory; takes milliseconds at any size.

        With an `embedder_digest`, raises EmbedderMismatchError when another embedder made the vectors. Raises
        IndexVersionError when a file is truncated or the files do not belong together.
        """
        metadata = IndexMetadata.of(manifest)
        if embedder_digest is not None and embedder_digest != metadata.embedder.digest:
            raise EmbedderMismatchError(
                f"{str(manifest.ref)!r} was built with the embedder {metadata.embedder.name!r} "
                f"({metadata.embedder.digest}), but queries would be embedded with {embedder_digest}: their vectors do "
                f"not compare. Name the embedder of the index in the release, or build the index again: "
                f"`rag-stack index build SPEC`, with the spec of {manifest.name!r}"
            )
        index = _read_index(path / INDEX_FILE)
        passages = PassageTable.open(path / PASSAGES_FILE)
        documents = open_table(path / DOCUMENTS_FILE, schema=DOCUMENTS_SCHEMA)
        _check(str(manifest.ref), metadata, index, passages=len(passages), documents=documents.num_rows)
        return cls(index, passages, manifest, path=path)

    @property
    def ntotal(self) -> int:
        """The number of passages."""
        return int(self._index.ntotal)

    def prefault(self) -> int:
        """Read index and passages into the page cache, so that no search waits for the disk; the bytes. Blocking.

        FAISS maps its file for random reads, which brings it in page by page: ten times slower than this.
        """
        return sum(_populate(self._path / name) for name in (INDEX_FILE, PASSAGES_FILE))

    def search(self, vectors: Vectors, k: int, *, allowed: npt.NDArray[np.bool_] | None = None) -> tuple[Vectors, Rows]:
        """The k passages nearest to each vector: cosine similarities and rows, both [n, k], best first.

        `vectors` is float32 [n, dimension], of unit length. `allowed` is bool [ntotal]: the rows that may be found.
        Where there are fewer than k, the row is -1 and the score means nothing.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(f"vectors must be [n, {self.dimension}], got {list(vectors.shape)}")
        if allowed is not None and allowed.shape != (self.ntotal,):
            raise ValueError(f"allowed must be [{self.ntotal}], got {list(allowed.shape)}")
        if self.ntotal == 0 or (allowed is not None and not allowed.any()):
            return np.zeros((len(vectors), k), np.float32), np.full((len(vectors), k), -1, np.int64)
        if allowed is None:
            scores, rows = self._index.search(vectors, k)
            return scores, rows
        scores, rows = self._index.search(vectors, k, params=selecting(self._index, allowed))
        return scores, rows


def _read_index(path: Path) -> faiss.Index:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as exc:
        reason = str(exc).split("Error: ")[-1]
        raise IndexVersionError(
            f"cannot read {str(path)!r} as a FAISS index: {reason}; it is truncated or not an index version's: "
            "delete the cached copy, or build the index again"
        ) from exc


def _check(ref: str, metadata: IndexMetadata, index: faiss.Index, *, passages: int, documents: int) -> None:
    """The three files and the manifest must tell the same story."""
    facts = (
        ("vectors", index.ntotal, metadata.passages),
        ("passages", passages, metadata.passages),
        ("documents", documents, metadata.documents),
        ("dimensions", index.d, metadata.dimension),
    )
    for what, found, expected in facts:
        if found != expected:
            raise IndexVersionError(
                f"{ref!r} holds {found} {what}, its manifest says {expected}; its files do not belong together: "
                "build the index again with `rag-stack index build`"
            )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexVersionError(f"{ref!r} is not a cosine index; build it again with `rag-stack index build`")


def _populate(path: Path) -> int:
    """Bring a file into the page cache; its size."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                for start in range(0, size, _PIECE_BYTES):
                    mapped.madvise(_MADV_POPULATE_READ, start, min(_PIECE_BYTES, size - start))
        except OSError:
            # A kernel or file system without it: a plain read has the same effect and one more copy.
            while file.read(_PIECE_BYTES // 8):
                pass
    return size
