"""An index version as it is written, opened, filtered and damaged. Real FAISS on small indexes."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.errors import EmbedderMismatchError, IndexVersionError
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import Cut, cut_documents
from rag_stack.index.documents import Document
from rag_stack.index.format import DOCUMENTS_FILE, INDEX_FILE, PASSAGES_FILE, Chunking, EmbedderRef, IndexMetadata
from rag_stack.index.passages import open_table
from rag_stack.index.reader import IndexVersion
from rag_stack.types import Passage
from tests.embedder import WordEmbedder
from tests.vectors import clustered

EMBEDDER = WordEmbedder(dimension=64)
REF = EmbedderRef(name=EMBEDDER.name, digest=EMBEDDER.digest)


def _documents(count: int) -> list[Document]:
    return [
        Document(
            document_id=f"file-{n}",
            text=f"# Part {n}\n\nfirst sentence about w{n}.\n\n## Detail\n\nsecond sentence about v{n}.\n",
            title=f"Document {n}",
            uri=f"https://docs.example/{n}",
            attributes={"filename": f"{n}.md", "n": float(n), "even": n % 2 == 0} | ({"n": "seven"} if n == 7 else {}),
            text_format="markdown",
        )
        for n in range(count)
    ]


def _cut(count: int) -> Cut:
    return cut_documents(
        _documents(count),
        tokenizer=EMBEDDER.tokenizer,
        max_tokens=64,
        chunking=Chunking(max_tokens=32, overlap_tokens=4),
    )


def _write(directory: Path, cut: Cut, *, recipe: str = "Flat", search_parameters: str = "") -> Manifest:
    directory.mkdir(exist_ok=True)
    metadata = write_index(
        directory,
        cut,
        EMBEDDER.encode(cut.inputs),
        embedder=REF,
        recipe=recipe,
        search_parameters=search_parameters,
    )
    return _manifest(directory, metadata)


def _manifest(directory: Path, metadata: IndexMetadata) -> Manifest:
    files = describe_files(directory)
    return Manifest(kind="indexes", name="docs", version="v1", files=files, metadata=metadata.to_json())


def _open(directory: Path, manifest: Manifest) -> IndexVersion:
    return IndexVersion.open(directory, manifest, embedder_digest=EMBEDDER.digest)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    cut = _cut(10)
    index = _open(tmp_path, _write(tmp_path, cut))
    assert (index.name, index.version, index.dimension, index.document_count) == ("docs", "v1", 64, 10)
    assert index.usage_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert [index.passages.get(row) for row in range(len(index.passages))] == list(cut.passages)
    assert index.passages.file_ids() == [f"file-{n}" for n in range(10)]
    first, second = index.passages.document("file-3")
    assert (first.title, second.title) == ("Document 3 > Part 3", "Document 3 > Part 3 > Detail")
    assert first.attributes == {"filename": "3.md", "n": 3.0, "even": False}
    assert index.passages.document("file-7")[0].attributes["n"] == "seven", "a key may have another type elsewhere"
    assert index.passages.document("nobody") == []
    with pytest.raises(IndexError):
        index.passages.get(-1)
    documents = open_table(tmp_path / DOCUMENTS_FILE, schema=pa.schema([])).to_pylist()
    assert [(row["document_id"], row["first_row"], row["passages"]) for row in documents[:2]] == [
        ("file-0", 0, 2),
        ("file-1", 2, 2),
    ]
    assert documents[4]["digest"] == _documents(10)[4].digest


def test_passages_are_verbatim_slices_of_their_documents() -> None:
    texts = {document.document_id: document.text for document in _documents(3)}
    for passage in _cut(3).passages:
        assert passage.text == texts[passage.document_id][passage.start : passage.end]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = _write(tmp_path / "one", _cut(10)), _write(tmp_path / "two", _cut(10))
    assert (one.files, one.metadata) == (two.files, two.metadata)


def test_a_title_gives_way_so_that_the_text_is_embedded_whole() -> None:
    text = "one two three four five six seven eight nine ten."
    document = Document(document_id="d", text=text, title="a very long title indeed", uri="")
    chunking = Chunking(max_tokens=16, overlap_tokens=0)
    cut = cut_documents([document], tokenizer=EMBEDDER.tokenizer, max_tokens=14, chunking=chunking)
    assert cut.inputs == (f"a very {text}",)
    assert cut.passages[0].title == "a very long title indeed"


def test_search_finds_the_nearest_first(tmp_path: Path) -> None:
    index = _open(tmp_path, _write(tmp_path, _cut(10)))
    scores, rows = index.search(EMBEDDER.encode(["second sentence about v4."]), 3)
    assert index.passages.get(int(rows[0, 0])).text.endswith("about v4.")
    assert scores[0].tolist() == sorted(scores[0].tolist(), reverse=True)
    assert scores.max() <= 1.0001


def test_more_than_there_is_gives_rows_of_minus_one(tmp_path: Path) -> None:
    index = _open(tmp_path, _write(tmp_path, _cut(2)))
    _, rows = index.search(EMBEDDER.encode(["sentence"]), 10)
    assert sorted(rows[0].tolist()) == [-1] * 6 + [0, 1, 2, 3]
    _, rows = index.search(EMBEDDER.encode(["sentence"]), 10, allowed=np.zeros(4, np.bool_))
    assert set(rows[0].tolist()) == {-1}


@pytest.mark.parametrize(
    ("recipe", "search_parameters"),
    [
        ("Flat", ""),
        ("SQ8", ""),
        ("IVF4,Flat", "nprobe=4"),
        ("IVF4,SQ8", "nprobe=4"),
        ("HNSW16", "efSearch=200"),
        ("PCA32,IVF4,Flat", "nprobe=4"),
        ("IVF4,PQ8x4fs,RFlat", "nprobe=4,k_factor_rf=100"),
    ],
)
def test_every_recipe_obeys_the_filter(tmp_path: Path, recipe: str, search_parameters: str) -> None:
    cut = _cut(150)
    index = _open(tmp_path, _write(tmp_path, cut, recipe=recipe, search_parameters=search_parameters))
    allowed = np.zeros(len(cut.passages), np.bool_)
    allowed[[8, 9, 100, 250]] = True
    _, rows = index.search(EMBEDDER.encode(["second sentence about v50."]), 10, allowed=allowed)
    assert sorted(row for row in rows[0].tolist() if row >= 0) == [8, 9, 100, 250]
    _, rows = index.search(EMBEDDER.encode([cut.inputs[101]]), 3)
    assert 101 in rows[0].tolist(), "search parameters were kept in the file"


@pytest.mark.parametrize("recipe", ["Nonsense", "IVF4000,Flat", "PQ8"])
def test_a_recipe_that_cannot_be_built_or_filtered_is_refused(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(IndexVersionError, match=f"FAISS cannot build and filter '{recipe}'"):
        _write(tmp_path, _cut(150), recipe=recipe)


def test_vectors_of_another_shape_are_refused(tmp_path: Path) -> None:
    index = _open(tmp_path, _write(tmp_path, _cut(2)))
    with pytest.raises(ValueError, match=r"must be \[n, 64\]"):
        index.search(np.zeros((1, 32), np.float32), 1)
    with pytest.raises(ValueError, match=r"allowed must be \[4\]"):
        index.search(np.zeros((1, 64), np.float32), 1, allowed=np.ones(3, np.bool_))


def test_nothing_to_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexVersionError, match="no passages to index"):
        _write(tmp_path, _cut(0))


def test_a_document_without_words_is_named() -> None:
    blank = Document(document_id="d", text="\u3000\n", title="", uri="", attributes={"path": "blank.txt"})
    cut = cut_documents([blank], tokenizer=EMBEDDER.tokenizer, max_tokens=64, chunking=Chunking())
    assert [(each.document, each.reason) for each in cut.skipped] == [("blank.txt", "has no words")]


def test_an_index_without_passages_opens_and_finds_nothing(tmp_path: Path) -> None:
    manifest = _write(tmp_path, _cut(1))
    faiss.write_index(faiss.IndexFlatIP(64), str(tmp_path / INDEX_FILE))
    for name in (PASSAGES_FILE, DOCUMENTS_FILE):
        _empty_table(tmp_path / name)
    metadata = IndexMetadata.of(manifest).model_copy(update={"passages": 0, "documents": 0})
    index = _open(tmp_path, _manifest(tmp_path, metadata))
    _, rows = index.search(EMBEDDER.encode(["anything"]), 3)
    assert rows.tolist() == [[-1, -1, -1]]
    assert index.prefault().whole


def _empty_table(path: Path) -> None:
    table = open_table(path, schema=pa.schema([])).slice(0, 0)
    table = pa.Table.from_pylist([], schema=table.schema)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def test_another_embedder_is_refused_and_both_are_named(tmp_path: Path) -> None:
    manifest = _write(tmp_path, _cut(2))
    other = "sha256:" + "0" * 64
    with pytest.raises(EmbedderMismatchError) as caught:
        IndexVersion.open(tmp_path, manifest, embedder_digest=other)
    for part in ("'words'", EMBEDDER.digest, other, "rag-stack index build"):
        assert part in caught.value.message
    assert IndexVersion.open(tmp_path, manifest, embedder_digest=None).embedder_digest == EMBEDDER.digest


def _truncate(fraction: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])

    return damage


@pytest.mark.parametrize("name", [INDEX_FILE, PASSAGES_FILE, DOCUMENTS_FILE])
@pytest.mark.parametrize(
    "damage",
    [
        _truncate(0.0),
        _truncate(0.3),
        _truncate(0.99),
        lambda path: path.write_bytes(b"not an index at all, but long enough to look like a file of some kind" * 9),
        lambda path: path.unlink(),
    ],
    ids=["emptied", "cut early", "cut late", "other content", "deleted"],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    manifest = _write(tmp_path, _cut(10))
    damage(tmp_path / name)
    with pytest.raises(IndexVersionError, match=name) as caught:
        _open(tmp_path, manifest)
    assert "build the index again" in caught.value.message


@pytest.mark.parametrize("name", [INDEX_FILE, PASSAGES_FILE, DOCUMENTS_FILE])
def test_files_of_two_versions_do_not_mix(tmp_path: Path, name: str) -> None:
    manifest = _write(tmp_path / "one", _cut(10))
    _write(tmp_path / "two", _cut(11))
    (tmp_path / "two" / name).replace(tmp_path / "one" / name)
    with pytest.raises(IndexVersionError, match="do not belong together"):
        _open(tmp_path / "one", manifest)


def test_an_arrow_file_of_something_else_is_refused(tmp_path: Path) -> None:
    manifest = _write(tmp_path, _cut(2))
    table = pa.table({"colour": ["red"] * 4})
    with pa.OSFile(str(tmp_path / PASSAGES_FILE), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(IndexVersionError, match="lacks the columns"):
        _open(tmp_path, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format_version": 99}, "has index format 99"), ({"dimension": "many"}, "dimension"), ({"metric": 5}, "metric")],
)
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    manifest = _write(tmp_path, _cut(2))
    changed = Manifest(
        kind="indexes", name="docs", version="v1", files=manifest.files, metadata={**manifest.metadata, **change}
    )
    with pytest.raises(IndexVersionError, match=message):
        _open(tmp_path, changed)


def test_a_metric_that_is_not_cosine_is_refused(tmp_path: Path) -> None:
    manifest = _write(tmp_path, _cut(2))
    index = faiss.IndexFlatL2(64)
    index.add(np.zeros((4, 64), np.float32))
    faiss.write_index(index, str(tmp_path / INDEX_FILE))
    with pytest.raises(IndexVersionError, match="not a cosine index"):
        _open(tmp_path, manifest)


@pytest.mark.parametrize(("recipe", "search_parameters"), [("Flat", ""), ("IVF4,Flat", "nprobe=1")])
def test_comparing_a_few_rows_takes_no_memory_by_the_size_of_the_index(
    tmp_path: Path, recipe: str, search_parameters: str
) -> None:
    count = 40_000
    vectors = clustered(count, 8)
    passages = tuple(Passage(f"d-{n}", "d", "text", "", "", 0, 4) for n in range(count))
    metadata = write_index(
        tmp_path,
        Cut((Document("d", "text", "", ""),), passages, ("text",) * count, ()),
        vectors,
        embedder=REF,
        recipe=recipe,
        search_parameters=search_parameters,
    )
    index = _open(tmp_path, _manifest(tmp_path, metadata))
    rows = np.array([39_999, 7, 20_000])
    expected = vectors[:2] @ vectors[rows].T
    np.testing.assert_allclose(index.similarities(vectors[:2], rows), expected, atol=1e-5)
    tracemalloc.start()
    index.similarities(vectors[:2], rows)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < count, "not even a byte a row"
