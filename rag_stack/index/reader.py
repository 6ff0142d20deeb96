"""One open index version: its vectors and passages are mapped, not loaded, and shared by all processes of a node."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.memory import available_bytes
from rag_stack.artifacts.residency import forget, populate, resident_bytes
from rag_stack.errors import EmbedderMismatchError, IndexVersionError
from rag_stack.index.format import (
    DOCUMENTS_FILE,
    DOCUMENTS_SCHEMA,
    INDEX_FILE,
    LEXICAL_DIRECTORY,
    LEXICAL_MAPPED_FILES,
    PASSAGES_FILE,
    IndexMetadata,
)
from rag_stack.index.gpu_memory import GpuMemory, Placement
from rag_stack.index.lexical import LexicalIndex
from rag_stack.index.passages import PassageTable, open_table
from rag_stack.index.probe import Probe, head_bytes
from rag_stack.index.selector import search_selected
from rag_stack.index.selector import similarities as similarities_of

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

# The rest is for what this process and its neighbours take later.
_MEMORY_SHARE: Final = 0.8
# Reads for single queries hold a prefault up, and it them. Until 200 answers from a cold index of 300 MB: 277 ms when
# the first waits for the prefault, 326 when it asks for its lists at once, 436 when it just reads.
_UNDISTURBED_S: Final = 0.5
_MAPPED_BY_S: Final = 0.02
_SEED: Final = 20
# Compressed vectors give inner products a little beyond 1.
_SANE_SCORE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Prefault:
    """What a prefault did: `size_bytes` are in memory now, of which the disk gave `read_bytes`.

    `whole` is false where the index is larger than the memory it may have, and only its head was read.
    """

    size_bytes: int
    read_bytes: int
    whole: bool


def set_search_threads(threads: int) -> None:
    """How many threads FAISS takes for a search or a build that the calling thread starts. Every thread has its own."""
    faiss.omp_set_num_threads(threads)


class IndexVersion:
    """An index version that is ready to be searched, until it is closed. Searches may run in several threads at once.

    It gives right answers as soon as it is open, whatever part of it is in memory; while a part is not, each search
    first asks the disk for what it will read.
    """

    def __init__(
        self,
        index: faiss.Index,
        passages: PassageTable,
        manifest: Manifest,
        *,
        path: Path,
        lexical: LexicalIndex | None = None,
    ) -> None:
        self._index: faiss.Index | None = index
        self._passages: PassageTable | None = passages
        self._lexical = lexical
        self._placement: Placement | None = None
        self._path = path
        self._probe = Probe.of(index)
        self._undisturbed = Event()
        self._undisturbed.set()
        self._wait_until_s = 0.0
        self.metadata = IndexMetadata.of(manifest)
        self.name = manifest.name
        self.version = manifest.version
        self.digest = manifest.digest
        self.embedder_digest = self.metadata.embedder.digest
        self.dimension = self.metadata.dimension
        self.document_count = self.metadata.documents
        self.usage_bytes = manifest.size_bytes

    @classmethod
    def open(cls, path: Path, manifest: Manifest, *, embedder_digest: str | None) -> "IndexVersion":
        """Map an index version from its verified directory.

        Takes milliseconds at any size for most recipes; but FAISS goes through an HNSW graph to check it and copies the
        lists of FastScan, at the speed of the disk. With an `embedder_digest`, raises EmbedderMismatchError when
        another embedder made the vectors. Raises IndexVersionError when a file is truncated or the files do not belong
        together.
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
        file = (path / INDEX_FILE).resolve()
        forget(file, stop_bytes=_copied_bytes(metadata, file.stat().st_size))
        passages = PassageTable.open(path / PASSAGES_FILE)
        documents = open_table(path / DOCUMENTS_FILE, schema=DOCUMENTS_SCHEMA)
        _check(str(manifest.ref), metadata, index, passages=len(passages), documents=documents.num_rows)
        lexical = None
        if metadata.lexical is not None:
            lexical = LexicalIndex.open(path / LEXICAL_DIRECTORY, metadata.lexical, passages=len(passages))
        return cls(index, passages, manifest, path=path, lexical=lexical)

    @property
    def ntotal(self) -> int:
        """The number of passages."""
        return self.metadata.passages

    @property
    def passages(self) -> PassageTable:
        """The passages by row. Raises IndexVersionError once it is closed."""
        if self._passages is None:
            raise self._closed()
        return self._passages

    @property
    def lexical(self) -> LexicalIndex | None:
        """The words of the passages; None where they are not indexed. Raises IndexVersionError once it is closed."""
        if self._passages is None:
            raise self._closed()
        return self._lexical

    def close(self) -> None:
        """Drop the mappings of its files; again does nothing. Nobody may search or hold its passages any more.

        Takes milliseconds a gigabyte that was read, without the interpreter's lock.
        """
        if self._placement is not None:
            self._placement.close()
            self._placement = None
        # The mappings end with the last reference: the kernel's part is done in FAISS's destructor, and in Arrow's.
        self._probe = None
        self._index = None
        self._passages = None
        self._lexical = None

    def place(self, gpu: GpuMemory, *, beside: "IndexVersion | None" = None) -> None:
        """Copy the vectors to a device, which then answers what has no filter; where it refuses, the host. Blocking.

        `beside` is the version that serves now, whose hot lists are hot in this one too where both have the same lists.
        """
        if self.ntotal and self._placement is None:
            self._placement = gpu.place(self._opened(), like=beside._placement if beside else None)

    def prefault(self, *, budget_bytes: int | None = None, undisturbed_s: float = _UNDISTURBED_S) -> Prefault:
        """Read index, passages and words into memory, so that no search waits for the disk. Blocking; searches may run.

        What does not fit into the budget, by default four fifths of the memory that this process may still take, is not
        read whole: it would drive out its own hot lists and everybody else's pages. Then only what every query touches
        is read, and lists come as queries ask for them. Searches wait for the end of it, but not longer than
        `undisturbed_s` after its begin: both are sooner done so. Raises IndexVersionError when a file cannot be read.
        """
        self._wait_until_s = time.monotonic() + undisturbed_s
        self._undisturbed.clear()
        try:
            done = self._prefault(_budget_bytes() if budget_bytes is None else budget_bytes)
            if self._probe and done.whole:
                self._probe.rest()
        except OSError as exc:
            raise IndexVersionError(f"cannot read {str(self._path)!r} into memory: {exc}") from exc
        finally:
            self._undisturbed.set()
        return done

    def _prefault(self, budget_bytes: int) -> Prefault:
        words = LEXICAL_MAPPED_FILES if self._lexical is not None else ()
        files = [self._path / name for name in (INDEX_FILE, PASSAGES_FILE, *words)]
        sizes = [path.stat().st_size for path in files]
        missing = sum(sizes) - sum(map(resident_bytes, files))
        if missing <= budget_bytes:
            for path in files:
                populate(path)
            return Prefault(sum(sizes), missing, whole=True)
        head = min(head_bytes(self._opened(), size_bytes=sizes[0]), budget_bytes)
        logging.getLogger(__name__).warning(
            "%s is not prefaulted: %.2f GB of it are not in memory and %.2f GB may be taken; %.2f GB that every query "
            "touches are read now, the rest as queries ask for it. More memory makes it faster, or a smaller recipe",
            *(f"{self.name}/{self.version}", missing / 1e9, budget_bytes / 1e9, head / 1e9),
        )
        read = head - resident_bytes(files[0], stop_bytes=head)
        populate(files[0], stop_bytes=head)
        return Prefault(head, read, whole=False)

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
        index = self._opened()
        if (placement := self._placement) is not None:
            placed = placement.answer(vectors, k, filtered=allowed is not None)
            if placed is not None:
                return placed
        self._undisturbed.wait(max(0.0, self._wait_until_s - time.monotonic()))
        with self._probe.around(vectors) if self._probe else nullcontext():
            if allowed is None:
                scores, rows = index.search(vectors, k)
            else:
                scores, rows = search_selected(index, vectors, k, allowed)
        return scores, rows

    def similarities(self, vectors: Vectors, rows: Rows) -> Vectors:
        """The cosine similarity of each vector to each of some rows, float32 [n, rows], by the index's own vectors.

        -inf for a row that it does not find. `rows` are different ones.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        index = self._opened()
        self._undisturbed.wait(max(0.0, self._wait_until_s - time.monotonic()))
        if type(index) is faiss.IndexFlat or type(index) is faiss.IndexFlatIP:
            return _flat_similarities(index, vectors, rows)
        return similarities_of(index, vectors, rows)

    def try_out(self, *, queries: int = 4, k: int = 8) -> None:
        """Answer a few random queries and read what they find. Raises IndexVersionError when an answer makes no sense.

        A damaged index may open, and then give scores that are no cosines, or rows that are not there.
        """
        vectors = np.random.default_rng(_SEED).standard_normal((queries, self.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scores, rows = self.search(vectors, min(k, max(1, self.ntotal)))
        found = rows >= 0
        if self.ntotal and not found.any():
            raise self._senseless(f"finds nothing in {self.ntotal} passages")
        if (rows >= self.ntotal).any() or not np.isfinite(scores[found]).all():
            raise self._senseless("finds rows that are not there, or with scores that are not finite")
        if (np.abs(scores[found]) > _SANE_SCORE).any():
            raise self._senseless(f"gives scores up to {np.abs(scores[found]).max():.2f}, and cosines end at 1")
        if not all(self.passages.get(int(row)).text for row in np.unique(rows[found])):
            raise self._senseless("has passages without text")
        if self._lexical is not None:
            self._lexical.try_out()

    def _opened(self) -> faiss.Index:
        if self._index is None:
            raise self._closed()
        return self._index

    def _closed(self) -> IndexVersionError:
        return IndexVersionError(f"{self.name}/{self.version} is closed; lease the store's current version")

    def _senseless(self, what: str) -> IndexVersionError:
        return IndexVersionError(
            f"{self.name}/{self.version} opens, but {what}; it is damaged: `rag-stack cache verify` tells whether the "
            "cached copy is, else build the index again"
        )


def _flat_similarities(index: faiss.Index, vectors: Vectors, rows: Rows) -> Vectors:
    """Of the rows alone: a search that may find no others looks at each row of the index to see that it may not."""
    labels = np.ascontiguousarray(np.broadcast_to(rows.astype(np.int64), (len(vectors), len(rows))))
    scores = np.empty(labels.shape, np.float32)
    index.compute_distance_subset(
        len(vectors), faiss.swig_ptr(vectors), len(rows), faiss.swig_ptr(scores), faiss.swig_ptr(labels)
    )
    return scores


def _budget_bytes() -> int:
    return int(available_bytes() * _MEMORY_SHARE)


def _read_index(path: Path) -> faiss.Index:
    try:
        with _read_beside(path):
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as exc:
        reason = str(exc).split("Error: ")[-1]
        raise IndexVersionError(
            f"cannot read {str(path)!r} as a FAISS index: {reason}; it is truncated or not an index version's: "
            "delete the cached copy, or build the index again"
        ) from exc


@contextmanager
def _read_beside(path: Path) -> Iterator[None]:
    """Read a file ahead of FAISS while it opens it: what it does not map it would read page by page."""
    opened = Event()

    def read() -> None:
        # What FAISS maps is open by then, and needs none of this.
        if opened.wait(_MAPPED_BY_S):
            return
        # What cannot be read, FAISS says better.
        with suppress(OSError):
            populate(path, stop_bytes=_budget_bytes(), cancelled=opened)

    thread = Thread(target=read, name="read-beside", daemon=True)
    thread.start()
    try:
        yield
    finally:
        opened.set()
        thread.join()


def _check(ref: str, metadata: IndexMetadata, index: faiss.Index, *, passages: int, documents: int) -> None:
    """The files and the manifest must tell the same story."""
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


def copied_bytes(manifest: Manifest) -> int:
    """How much of an index version a process copies when it opens it; the rest are pages of its files, shared by all.

    FAISS copies the lists of FastScan, which it keeps in another order than in the file, and maps everything else.
    """
    size = next((entry.size_bytes for entry in manifest.files if entry.path == INDEX_FILE), 0)
    return _copied_bytes(IndexMetadata.of(manifest), size)


def _copied_bytes(metadata: IndexMetadata, size: int) -> int:
    if "fs" not in metadata.recipe:
        return 0
    # What finds are ranked again by lies behind the lists, and is mapped.
    bytes_a_number = 4 if "RFlat" in metadata.recipe else 1 if "Refine(SQ8)" in metadata.recipe else 0
    return max(0, size - metadata.passages * metadata.dimension * bytes_a_number)
