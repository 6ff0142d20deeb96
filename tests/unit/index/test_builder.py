"""An index version written document by document: bytes, refusals, a full disk, and memory. Real FAISS."""

import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.errors import IndexVersionError
from rag_stack.index.builder import IndexWriter
from rag_stack.index.cutting import CutDocument, cut_document
from rag_stack.index.documents import Document
from rag_stack.index.format import (
    DOCUMENTS_FILE,
    INDEX_FILE,
    LEXICAL_FILES,
    PASSAGES_FILE,
    Chunking,
    EmbedderRef,
    IndexMetadata,
    Lexical,
    Skipped,
)
from rag_stack.index.reader import IndexVersion
from rag_stack.types import Passage
from tests.embedder import WordEmbedder
from tests.vectors import clustered

D = 64
REF = EmbedderRef(name="seeded", digest="sha256:" + "0" * 64)
FILES = sorted([DOCUMENTS_FILE, INDEX_FILE, PASSAGES_FILE])


def _documents(count: int, *, passages: int = 10) -> Iterator[tuple[Document, list[Passage]]]:
    for number in range(count):
        attributes: dict[str, str | float | bool] = {"path": f"{number}.txt", "number": float(number)}
        document = Document(f"d{number}", "x" * passages, f"Document {number}", "", attributes)
        yield (
            document,
            [Passage(f"d{number}-{n}", f"d{number}", "x", "", "", n, n + 1, attributes) for n in range(passages)],
        )


def _write(
    directory: Path, vectors: np.ndarray, *, passages: int = 10, lexical: Lexical | None = None, **options: Any
) -> IndexMetadata:
    directory.mkdir(exist_ok=True)
    with IndexWriter(directory, dimension=vectors.shape[1], lexical=lexical) as writer:
        for document, made in _documents(len(vectors) // passages, passages=passages):
            writer.add(document, made, vectors[writer.passages : writer.passages + passages])
        return writer.finish(embedder=REF, **options)


def _open(directory: Path, metadata: IndexMetadata) -> IndexVersion:
    files = describe_files(directory)
    manifest = Manifest(kind="indexes", name="docs", version="v1", files=files, metadata=metadata.to_json())
    return IndexVersion.open(directory, manifest, embedder_digest=None)


RECIPES = ["auto", "SQ8", "HNSW16", "IVF32,Flat", "PCA32,IVF16,SQ8", "Pad68,IVF32,PQ34x4fs,RFlat", "IVF16,PQ8"]
RECIPES.append("Pad68,IVF32,PQ34x4fs,Refine(SQ8)")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_vectors_give_the_same_bytes(tmp_path: Path, recipe: str) -> None:
    vectors = clustered(5_000, D)
    for name, threads in (("one", 1), ("two", 2)):
        faiss.omp_set_num_threads(threads)
        metadata = _write(tmp_path / name, vectors, recipe=recipe)
        assert faiss.omp_get_max_threads() == threads, "the caller's threads are given back"
        assert _open(tmp_path / name, metadata).ntotal == 5_000
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == FILES
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("recipe", ["Flat", "SQ8", "IVF32,Flat", "IVF32,PQ32x4fs,RFlat", "PCA32,IVF32,PQ16x4fs,RFlat"])
def test_an_index_in_blocks_finds_what_one_in_memory_finds(tmp_path: Path, recipe: str) -> None:
    vectors, queries = clustered(20_000, D), clustered(30, D, seed=2)
    parameters = "" if recipe in ("Flat", "SQ8") else "nprobe=4"
    faiss.omp_set_num_threads(1)
    index = _open(tmp_path, _write(tmp_path, vectors, recipe=recipe, search_parameters=parameters))
    whole = faiss.index_factory(D, recipe, faiss.METRIC_INNER_PRODUCT)
    whole.train(vectors)
    whole.add(vectors)
    faiss.ParameterSpace().set_index_parameters(whole, parameters)
    scores, rows = index.search(queries, 10)
    expected_scores, expected_rows = whole.search(queries, 10)
    assert rows.tolist() == expected_rows.tolist()
    assert np.allclose(scores, expected_scores, atol=1e-6)
    allowed = np.zeros(20_000, np.bool_)
    allowed[::100] = True
    _, rows = index.search(queries, 5, allowed=allowed)
    assert (rows % 100 == 0)[rows >= 0].all()


def test_a_flat_index_is_what_faiss_itself_writes(tmp_path: Path) -> None:
    vectors = clustered(1_000, D)
    _write(tmp_path, vectors, recipe="Flat")
    index = faiss.index_factory(D, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    assert (tmp_path / INDEX_FILE).read_bytes() == faiss.serialize_index(index).tobytes()


def test_words_are_files_of_the_version_and_are_searched(tmp_path: Path) -> None:
    vectors = clustered(50, D)
    for name in ("one", "two"):
        metadata = _write(tmp_path / name, vectors, lexical=Lexical())
    assert metadata.lexical == Lexical()
    found = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert found == sorted([*FILES, *LEXICAL_FILES])
    for file in LEXICAL_FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    index = _open(tmp_path / "one", metadata)
    assert index.lexical is not None
    assert index.lexical.passages == 50
    index.close()
    with pytest.raises(IndexVersionError, match="is closed"):
        _ = index.lexical


def test_large_corpora_are_read_back_across_batches(tmp_path: Path) -> None:
    index = _open(tmp_path, _write(tmp_path, clustered(70_000, 8), recipe="Flat"))
    chunks = index.passages.table.column("text").chunks
    assert [len(chunk) for chunk in chunks] == [65_536, 4_464]
    assert [index.passages.get(row).passage_id for row in (0, 4_099, 65_535, 65_536, 69_999)] == [
        *("d0-0", "d409-9", "d6553-5", "d6553-6", "d6999-9")
    ]
    assert index.passages.get(69_999).attributes == {"path": "6999.txt", "number": 6999.0}


def test_long_texts_make_short_batches(tmp_path: Path) -> None:
    text = "long " * 1_000_000
    with IndexWriter(tmp_path, dimension=D) as writer:
        for number, vector in enumerate(clustered(20, D)):
            passage = Passage(f"d{number}-0", f"d{number}", text, "", "", 0, len(text))
            writer.add(Document(f"d{number}", text, "", ""), [passage], vector[None])
        index = _open(tmp_path, writer.finish(embedder=REF))
    assert max(chunk.nbytes for chunk in index.passages.table.column("text").chunks) <= 64 << 20
    assert index.passages.get(19).text == text


def test_what_is_said_of_an_index(tmp_path: Path) -> None:
    skipped = [Skipped(document="a.bin", reason="is binary")]
    queries = clustered(7, D, seed=3)
    metadata = _write(tmp_path, clustered(2_000, D), chunking=Chunking(), skipped=skipped, queries=queries)
    assert metadata == IndexMetadata(
        embedder=REF,
        dimension=D,
        recipe="Flat",
        passages=2_000,
        documents=200,
        chunking=Chunking(),
        skipped=tuple(skipped),
        skipped_documents=1,
        recall=1.0,
        recall_at=10,
        recall_queries=200,
        recall_target=0.95,
    )


def _damaged(value: float, row: int = 4) -> np.ndarray:
    vectors = clustered(10, D)
    vectors[row, 7] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (_damaged(np.nan), "passage 4 of document 'd0' has the length nan, expected 1"),
        (_damaged(np.inf), "passage 4 of document 'd0' has the length inf, expected 1"),
        (clustered(10, D) * np.float32(1.01), "passage 0 of document 'd0' has the length 1.0"),
        (np.zeros((10, D), np.float32), "has the length 0.0"),
        (clustered(10, 32), "vectors of 32 dimensions, this index has 64"),
    ],
)
def test_vectors_that_are_none_are_refused_and_the_writer_goes_on(
    tmp_path: Path, vectors: np.ndarray, message: str
) -> None:
    ((document, passages),) = _documents(1)
    with IndexWriter(tmp_path, dimension=D) as writer:
        with pytest.raises(IndexVersionError, match=message):
            writer.add(document, passages, vectors)
        with pytest.raises(ValueError, match="need as many vectors"):
            writer.add(document, passages, clustered(9, D))
        assert (writer.documents, writer.passages) == (0, 0)
        writer.add(document, passages, clustered(10, D))
        assert writer.finish(embedder=REF).passages == 10


def test_a_document_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    vectors = clustered(1, D)
    with IndexWriter(tmp_path, dimension=D) as writer:
        for document, passages in _documents(70_000, passages=1):
            writer.add(document, passages, vectors)
        # One is among the latest, one among those that were put away sorted.
        for twice in ("d0", "d69999"):
            with pytest.raises(IndexVersionError, match=f"the document id '{twice}' is there twice"):
                writer.add(Document(twice, "x", "", ""), passages, vectors)


def test_nothing_to_index_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with IndexWriter(tmp_path, dimension=D) as writer, pytest.raises(IndexVersionError, match="no passages to index"):
        writer.finish(embedder=REF)
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with IndexWriter(tmp_path, dimension=D) as writer:
        for document, passages in _documents(3):
            writer.add(document, passages, clustered(10, D))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_is_no_hindrance(tmp_path: Path) -> None:
    killed = IndexWriter(tmp_path, dimension=D)
    assert list(tmp_path.iterdir()) != []
    assert _write(tmp_path, clustered(20, D)).passages == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    killed.close()


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexVersionError, match="cannot write the index to"):
        IndexWriter(tmp_path / "nowhere", dimension=D)


@contextmanager
def _no_file_over(limit_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit_bytes", [0, 10, 20_000, 150_000, 600_000, 1_150_000])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path, limit_bytes: int) -> None:
    """At any time: in turn a header, the spool, the vectors do not fit."""
    with _no_file_over(limit_bytes), pytest.raises(IndexVersionError, match="is the disk full"):
        _write(tmp_path, clustered(4_500, D), recipe="Flat")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["IVF16,Flat", "HNSW16", "IVF16,PQ32x4fs,RFlat"])
@pytest.mark.parametrize("missing_bytes", [1, 20_000])
def test_an_index_that_does_not_fit_is_a_clear_error(tmp_path: Path, recipe: str, missing_bytes: int) -> None:
    """To the last byte, which FAISS writes as it closes the file and does not tell of."""
    vectors = clustered(4_500, D)
    _write(tmp_path / "whole", vectors, recipe=recipe)
    size = (tmp_path / "whole" / INDEX_FILE).stat().st_size
    (tmp_path / "short").mkdir()
    with _no_file_over(size - missing_bytes), pytest.raises(IndexVersionError, match="is the disk full"):
        _write(tmp_path / "short", vectors, recipe=recipe)
    assert list((tmp_path / "short").iterdir()) == []


_MEMORY = """
    import sys
    from pathlib import Path
    from threading import Event, Thread
    import numpy as np
    from rag_stack.index.builder import IndexWriter
    from rag_stack.index.documents import Document
    from rag_stack.index.format import EmbedderRef, Lexical
    from rag_stack.types import Passage
    from tests.vectors import clustered

    def anonymous():
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0])

    count, recipe, peak, stop = int(sys.argv[2]), sys.argv[3], 0, Event()

    def watch():
        global peak
        while not stop.wait(0.002):
            peak = max(peak, anonymous())

    watching = Thread(target=watch)
    watching.start()
    vectors = clustered(1000, 64)
    with IndexWriter(Path(sys.argv[1]), dimension=64, lexical=Lexical()) as writer:
        for number in range(count // 100):
            passages = [Passage(f"d{number}-{n}", f"d{number}", "a text " * 20, "", "", 0, 1) for n in range(100)]
            block = vectors[(number % 10) * 100:][:100]
            writer.add(Document(f"d{number}", "", "", ""), passages, block)
        writer.finish(embedder=EmbedderRef(name="a", digest="b"), recipe=recipe, search_parameters=sys.argv[4])
    stop.set()
    watching.join()
    print(peak * 1024)
"""


def _peak_bytes(directory: Path, count: int, recipe: str, search_parameters: str) -> int:
    directory.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(_MEMORY), str(directory), str(count), recipe, search_parameters]
    # Allocators that give back what is freed: what they would hoard is more, and differs from run to run.
    frugal = {
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | frugal)
    return int(run.stdout)


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "search_parameters", "code_bytes"), [("Flat", "", 0), ("IVF64,PQ32x4fs,RFlat", "nprobe=4", 16)]
)
def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, recipe: str, search_parameters: str, code_bytes: int
) -> None:
    before, after = (
        _peak_bytes(tmp_path / str(count), count, recipe, search_parameters) for count in (140_000, 300_000)
    )
    # The vectors alone would be 41 MB more, the texts 22 MB. Lists grow to twice what they hold.
    assert after - before < 160_000 * (24 + 2 * code_bytes) + (4 << 20)


def test_a_document_is_cut_by_its_own_chunking() -> None:
    embedder = WordEmbedder(dimension=D)
    text = " ".join(f"w{n}." for n in range(64))
    own = Document("d", text, "", "", chunking=Chunking(max_tokens=16, overlap_tokens=0))
    options: dict[str, Any] = {"tokenizer": embedder.tokenizer, "max_tokens": 256}
    counts = []
    for document, chunking in (
        (own, None),
        (own, Chunking(max_tokens=32, overlap_tokens=0)),
        (Document("d", text, "", ""), Chunking(max_tokens=32, overlap_tokens=0)),
        (Document("d", text, "", ""), None),
    ):
        cut = cut_document(document, chunking=chunking, **options)
        assert isinstance(cut, CutDocument)
        assert [passage.passage_id for passage in cut.passages] == [f"d-{n}" for n in range(len(cut.passages))]
        counts.append(len(cut.passages))
    assert counts == [4, 4, 2, 1]
    blank = Document("d", " \n", "", "", {"path": "blank.txt"})
    assert cut_document(blank, chunking=None, **options) == Skipped(document="blank.txt", reason="has no words")
