"""Documents -> the files of an index version, in one pass. The same input gives the same bytes."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_stack.errors import IndexVersionError
from rag_stack.index.cutting import Cut
from rag_stack.index.document_ids import DocumentIds
from rag_stack.index.documents import Document
from rag_stack.index.flat_file import FlatFile
from rag_stack.index.format import (
    DOCUMENTS_FILE,
    INDEX_FILE,
    LEXICAL_DIRECTORY,
    LEXICAL_FILES,
    MAX_SKIPPED,
    PASSAGES_FILE,
    Chunking,
    EmbedderRef,
    IndexMetadata,
    Lexical,
    Skipped,
)
from rag_stack.index.lexical import LexicalIndex
from rag_stack.index.lexical_writer import LexicalWriter
from rag_stack.index.recipe import choose_recipe, fits_exact
from rag_stack.index.spec import AUTO
from rag_stack.index.spool import DocumentFile, PassageSpool
from rag_stack.index.training import Trained, one_thread, train
from rag_stack.index.tuning import Exact, apply, recall_of, tune
from rag_stack.types import Passage

Vectors = npt.NDArray[np.float32]

# Below the directory that is written into. A leading dot is never published.
_PARTIAL: Final = ".partial"
_VECTORS_FILE: Final = "vectors.faiss"
_SPOOL_FILE: Final = "passages.stream"
_WORDS: Final = "words"
_UNIT_TOLERANCE: Final = 1e-3
_WRITE_BYTES: Final = 1 << 20


class IndexWriter:
    """Writes the files of an index version into a directory, document by document. For one thread.

    What it holds in memory does not grow with the corpus, but for 8 bytes a document and what the recipe keeps: nothing
    for Flat, codes and ids for inverted lists of product quantizers, all vectors for HNSW and `IVF...,Flat`. On the
    disk it takes the vectors, passages and words twice while it finishes. Words are indexed only with `lexical`.
    Left without `finish`, or by an exception, it leaves nothing behind.
    """

    def __init__(self, directory: Path, *, dimension: int, lexical: Lexical | None = None) -> None:
        """Begin to write into a directory that exists. Raises IndexVersionError when nothing can be written there."""
        self.dimension = dimension
        self._directory = directory
        self._partial = directory / _PARTIAL
        self._ids = DocumentIds()
        self._lexical = lexical
        self._words: LexicalWriter | None = None
        with _written(directory), ExitStack() as undo:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir()
            undo.callback(shutil.rmtree, self._partial, ignore_errors=True)
            self._flat = FlatFile(self._partial / _VECTORS_FILE, dimension=dimension)
            self._passages = PassageSpool(self._partial / _SPOOL_FILE)
            self._documents = DocumentFile(self._partial / DOCUMENTS_FILE)
            if lexical is not None:
                self._words = LexicalWriter(self._partial / _WORDS, lexical)
            undo.pop_all()

    @property
    def documents(self) -> int:
        """How many documents were added."""
        return self._documents.count

    @property
    def passages(self) -> int:
        """How many passages were added."""
        return self._passages.count

    def add(self, document: Document, passages: Sequence[Passage], vectors: Vectors) -> None:
        """Add a document with its passages and their vectors, float32 [passages, dimension] of unit length. Blocking.

        Raises IndexVersionError for a document id that was added before, and for vectors that are of another dimension,
        not of unit length or not finite; nothing is added then. Raises it too when the disk is full.
        """
        if not passages or vectors.ndim != 2 or len(vectors) != len(passages):
            raise ValueError(f"{len(passages)} passages need as many vectors, at least one, got {list(vectors.shape)}")
        self._check(document.document_id, vectors)
        with _written(self._directory):
            self._documents.append(document, first_row=self.passages, passages=len(passages))
            self._passages.append(passages)
            self._flat.append(vectors)
            if self._words is not None:
                self._words.append(passages)
        self._ids.add(document.document_id)

    def finish(
        self,
        *,
        embedder: EmbedderRef,
        recipe: str = AUTO,
        search_parameters: str = "",
        recall_target: float = 0.95,
        recall_at: int = 10,
        memory_budget_bytes: int | None = None,
        chunking: Chunking | None = None,
        skipped: Sequence[Skipped] = (),
        skipped_documents: int | None = None,
        queries: Vectors | None = None,
    ) -> IndexMetadata:
        """Build the index, measure its recall, and put the files into the directory. Blocking, up to hours.

        `search_parameters` are taken as they are; without them the cheapest are taken that find `recall_target` of the
        `recall_at` nearest passages. `queries`, float32 [n, dimension] of unit length, are vectors of real questions to
        measure with, in the place of as many that are made of passages. `skipped_documents` were left out (default:
        those of `skipped`), of which the metadata names the first. Raises IndexVersionError when there is nothing to
        index, FAISS refuses the recipe, or the disk is full.
        """
        if not self.passages:
            raise IndexVersionError("there are no passages to index: every document is empty or could not be read")
        if recipe == AUTO:
            recipe = choose_recipe(
                self.passages, self.dimension, memory_budget_bytes=memory_budget_bytes, recall_target=recall_target
            )
        # 8-bit vectors were chosen because they fit.
        in_memory = "RFlat" not in recipe or fits_exact(
            self.passages, self.dimension, memory_budget_bytes=memory_budget_bytes
        )
        with _written(self._directory):
            self._flat.complete()
            self._documents.complete()
            self._passages.complete(self._partial / PASSAGES_FILE)
            if self._words is not None:
                self._words.complete(self._partial / LEXICAL_DIRECTORY)
        exact = Exact.of(self._flat, at=recall_at, queries=queries)
        with one_thread():
            trained = train(self._flat, recipe, search_parameters)
            chosen = search_parameters or tune(trained.index, exact, target=recall_target, in_memory=in_memory)
            apply(trained.index, chosen)
            recall = recall_of(trained.index, exact)
        self._write(trained, exact)
        return IndexMetadata(
            embedder=embedder,
            dimension=self.dimension,
            recipe=recipe,
            search_parameters=chosen,
            passages=self.passages,
            documents=self.documents,
            chunking=chunking,
            lexical=self._lexical,
            skipped=tuple(skipped[:MAX_SKIPPED]),
            skipped_documents=len(skipped) if skipped_documents is None else skipped_documents,
            recall=recall,
            recall_at=exact.at,
            recall_queries=len(exact.queries),
            recall_target=None if search_parameters else recall_target,
            training_sample=trained.sample,
        )

    def close(self) -> None:
        """Remove what is not finished."""
        for part in (self._flat, self._passages, self._documents, self._words):
            # Whatever it could not write is deleted now.
            with suppress(OSError, pa.ArrowException):
                if part is not None:
                    part.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, document_id: str, vectors: Vectors) -> None:
        if vectors.shape[1] != self.dimension:
            raise IndexVersionError(
                f"document {document_id!r} has vectors of {vectors.shape[1]} dimensions, this index has "
                f"{self.dimension}: were they made by another embedder?"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        # NaN is not near anything.
        wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT_TOLERANCE))
        if len(wrong):
            raise IndexVersionError(
                f"the vector of passage {int(wrong[0])} of document {document_id!r} has the length "
                f"{float(lengths[wrong[0]])}, expected 1: the embedder gives no unit vectors, or fails on this text"
            )
        if document_id in self._ids:
            raise IndexVersionError(
                f"the document id {document_id!r} is there twice; give each document an id of its own"
            )

    def _write(self, trained: Trained, exact: Exact) -> None:
        path = self._partial / INDEX_FILE
        with _written(self._directory):
            if isinstance(trained.index, faiss.IndexFlat):
                self._flat.path.replace(path)
            else:
                with path.open("wb") as file:
                    # Given a path, FAISS does not tell what fails as it closes the file.
                    faiss.write_index(trained.index, faiss.PyCallbackIOWriter(file.write, _WRITE_BYTES))
            _verify(path, trained.index, exact)
            names = [INDEX_FILE, PASSAGES_FILE, DOCUMENTS_FILE]
            if self._lexical is not None:
                names += LEXICAL_FILES
                LexicalIndex.open(self._partial / LEXICAL_DIRECTORY, self._lexical, passages=self.passages).try_out()
                (self._directory / LEXICAL_DIRECTORY).mkdir(exist_ok=True)
            try:
                for name in names:
                    (self._partial / name).replace(self._directory / name)
            except OSError:
                for name in names:
                    (self._directory / name).unlink(missing_ok=True)
                raise


def write_index(
    directory: Path,
    cut: Cut,
    vectors: Vectors,
    *,
    embedder: EmbedderRef,
    recipe: str = "Flat",
    search_parameters: str = "",
    chunking: Chunking | None = None,
    lexical: Lexical | None = None,
    skipped: Sequence[Skipped] = (),
) -> IndexMetadata:
    """Write what fits into memory: `vectors` is float32 [passages, d] of unit length. Blocking, see IndexWriter."""
    if len(vectors) != len(cut.passages):
        raise ValueError(f"{len(cut.passages)} passages need as many vectors, got {list(vectors.shape)}")
    with IndexWriter(directory, dimension=vectors.shape[1], lexical=lexical) as writer:
        groups = groupby(enumerate(cut.passages), key=lambda pair: pair[1].document_id)
        for document, (_, group) in zip(cut.documents, groups, strict=True):
            rows, passages = zip(*group, strict=True)
            writer.add(document, passages, vectors[rows[0] : rows[-1] + 1])
        return writer.finish(
            embedder=embedder,
            recipe=recipe,
            search_parameters=search_parameters,
            chunking=chunking,
            skipped=(*skipped, *cut.skipped),
        )


def _verify(path: Path, index: faiss.Index, exact: Exact) -> None:
    """The file must answer as the index does."""
    written = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    query = exact.queries[:1]
    found, expected = (each.search(query, exact.at)[1].tolist() for each in (written, index))
    if written.ntotal != index.ntotal or found != expected:
        raise OSError(f"{str(path)!r} does not hold what was written")


@contextmanager
def _written(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, pa.ArrowException) as exc:
        raise IndexVersionError(f"cannot write the index to {str(directory)!r}: {exc}; is the disk full?") from exc
