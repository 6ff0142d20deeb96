"""Builds the index of `loadtests.cold_index` once: seeded vectors in topics and subtopics, as real text makes them."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from loadtests.cold_index_data import INDEX_FOLDER, MANIFEST_FILE, QUESTIONS_FILE, K
from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import Cut
from rag_stack.index.documents import Document
from rag_stack.index.format import INDEX_FILE, EmbedderRef
from rag_stack.index.reader import Vectors
from rag_stack.types import Passage

D = 384
NPROBE = 8
TOPICS, SUBTOPICS, HOT_TOPICS = 32, 40, 4
QUERIES, POOL = 200, 1000
_ENTRY_BYTES = D * 4 + 8
_PASSAGES_A_DOCUMENT = 100
# Of a vector around its centre, which is 1 long: it makes the recall that real embeddings have.
_SPREAD = 1.2
# Of the layout below; another one is built anew.
_VERSION = "v1"


def ensure(root: Path, *, size_mb: int, tell: Callable[[str], None]) -> Path:
    """The folder of the index with about `size_mb` of vectors; built when it is not there yet. Blocking: a minute."""
    folder = root / f"{_VERSION}-{size_mb}mb"
    if (folder / QUESTIONS_FILE).is_file():
        return folder
    tell(f"building an index of {size_mb} MB, once, in {folder}")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / INDEX_FOLDER).mkdir(parents=True)
    _build(partial, rows=size_mb * 1_000_000 // _ENTRY_BYTES)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def lists_of(rows: int) -> int:
    """How many inverted lists: about 4 * sqrt(rows), as FAISS's guide has it, down to a power of two."""
    return int(2 ** int(math.log2(4 * math.sqrt(rows))))


def _build(folder: Path, *, rows: int) -> None:
    vectors = draw(rows, topics=range(TOPICS), seed=1)
    cut = _passages(rows)
    metadata = write_index(
        folder / INDEX_FOLDER,
        cut,
        vectors,
        embedder=EmbedderRef(name="seeded", digest="sha256:" + "0" * 64),
        recipe=f"IVF{lists_of(rows)},Flat",
        search_parameters=f"nprobe={NPROBE}",
    )
    files = describe_files(folder / INDEX_FOLDER)
    manifest = Manifest(kind="indexes", name="cold", version=_VERSION, files=files, metadata=metadata.to_json())
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    index = faiss.read_index(str(folder / INDEX_FOLDER / INDEX_FILE))
    asked = {
        "mixed": draw(QUERIES, topics=range(TOPICS), seed=2),
        "hot": draw(POOL, topics=range(HOT_TOPICS), seed=3),
        "cold": draw(POOL, topics=range(HOT_TOPICS, TOPICS), seed=4),
    }
    found = {f"{name}_rows": index.search(queries, K)[1] for name, queries in asked.items()}
    hot_lists = np.unique(index.quantizer.search(asked["hot"], NPROBE)[1])
    hot_bytes = sum(index.invlists.list_size(int(number)) for number in hot_lists) * _ENTRY_BYTES
    exact = np.argsort(-(asked["mixed"] @ vectors.T), axis=1)[:, :K]
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(exact, found["mixed_rows"], strict=True)])
    kept: dict[str, Any] = {**asked, **found, "hot_bytes": hot_bytes, "recall": recall}
    np.savez(folder / QUESTIONS_FILE, **kept)


def draw(count: int, *, topics: range, seed: int) -> Vectors:
    """Unit vectors around subtopics, which lie around their topics; the centres are the same for every seed."""
    centres = np.random.default_rng(0)
    around = _unit(centres.standard_normal((TOPICS, 1, D)))
    around = _unit(around + 0.6 * _unit(centres.standard_normal((TOPICS, SUBTOPICS, D))))
    rng = np.random.default_rng(seed)
    vectors = around[rng.integers(topics.start, topics.stop, count), rng.integers(0, SUBTOPICS, count)]
    vectors = vectors + _SPREAD * _unit(rng.standard_normal((count, D), dtype=np.float32))
    return _unit(vectors)


def _unit(vectors: npt.NDArray[np.floating[Any]]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def _passages(rows: int) -> Cut:
    """A passage of some 160 characters for each row, a hundred of them a document."""
    count = -(-rows // _PASSAGES_A_DOCUMENT)
    documents = tuple(Document(document_id=f"file-{n}", text="", title=f"Document {n}", uri="") for n in range(count))
    passages = []
    for row in range(rows):
        document = f"file-{row // _PASSAGES_A_DOCUMENT}"
        text = f"Passage {row} of {document}. " + "It says what it has to say in plain words. " * 3
        passages.append(Passage(f"{document}-{row}", document, text, f"Part {row}", "", 0, len(text)))
    return Cut(documents, tuple(passages), ("",) * rows, ())
