"""Every gate as it passes and as it fails, on an index version that was built and opened."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import Document
from rag_stack.index.format import EmbedderRef, GateResult, IndexMetadata
from rag_stack.index.gate import check_gates
from rag_stack.index.reader import IndexVersion
from rag_stack.index.spec import Canary, Gates
from rag_stack.types import Passage
from tests.embedder import WordEmbedder

EMBEDDER = WordEmbedder(dimension=1024)
REF = EmbedderRef(name=EMBEDDER.name, digest=EMBEDDER.digest)
OTHER = EmbedderRef(name="other", digest="sha256:" + "1" * 64)
Search = Callable[[str, int], Sequence[Passage]]


def _documents(count: int) -> list[Document]:
    return [
        Document(
            document_id=f"file-{n}",
            text=f"all about word{n} and its uses",
            title=f"Word {n}",
            uri=f"https://docs.example/{n}",
            attributes={"path": f"words/{n}.txt", "filename": f"{n}.txt"},
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexMetadata, Search]:
    directory = tmp_path_factory.mktemp("index")
    cut = cut_documents(_documents(20), tokenizer=EMBEDDER.tokenizer, max_tokens=64, chunking=None)
    metadata = write_index(directory, cut, EMBEDDER.encode(cut.inputs), embedder=REF)
    files = describe_files(directory)
    manifest = Manifest(kind="indexes", name="docs", version="v2", files=files, metadata=metadata.to_json())
    index = IndexVersion.open(directory, manifest, embedder_digest=None)

    def search(question: str, k: int) -> list[Passage]:
        _, rows = index.search(EMBEDDER.encode([question]), k)
        return [index.passages.get(int(row)) for row in rows[0] if row >= 0]

    return metadata, search


def _failed(results: tuple[GateResult, ...]) -> list[str]:
    return [each.name for each in results if not each.passed]


def test_a_sound_version_passes(built: tuple[IndexMetadata, Search]) -> None:
    metadata, search = built
    gates = Gates(canaries=(Canary(question="word7", expect=("words/7.txt",)),))
    results = check_gates(gates, metadata=metadata, embedder=REF, documents=20, search=search)
    assert [each.name for each in results] == ["counts", "min_documents", "min_recall", "embedder", "canary 1"]
    assert _failed(results) == []
    assert results == check_gates(gates, metadata=metadata, embedder=REF, documents=20, search=search)
    assert metadata.with_gates(results).gates == results


@pytest.mark.parametrize(
    ("gates", "change", "embedder", "documents", "failed", "detail"),
    [
        (Gates(), {}, REF, 21, "counts", "20 documents with 20 passages, of 21 documents given"),
        (Gates(), {"documents": 0, "passages": 0}, REF, 0, "counts", "0 documents"),
        (Gates(), {"passages": 19}, REF, 20, "counts", "20 documents with 19 passages"),
        (Gates(min_documents=21), {}, REF, 20, "min_documents", "20 documents, at least 21 expected"),
        (Gates(), {"recall": 0.89}, REF, 20, "min_recall", "recall at 10 is 0.89 over 20 queries, at least 0.9"),
        (Gates(), {}, OTHER, 20, "embedder", "expected 'other'"),
    ],
)
def test_content_that_is_not_sound_fails(
    built: tuple[IndexMetadata, Search],
    gates: Gates,
    change: dict[str, object],
    embedder: EmbedderRef,
    documents: int,
    failed: str,
    detail: str,
) -> None:
    metadata = built[0].model_copy(update=change)
    results = check_gates(gates, metadata=metadata, embedder=embedder, documents=documents, search=built[1])
    assert failed in _failed(results)
    assert detail in next(each.detail for each in results if each.name == failed)


@pytest.mark.parametrize("expect", ["words/7.txt", "7.txt", "https://docs.example/7", "file-7"])
def test_a_canary_names_its_document_in_four_ways(built: tuple[IndexMetadata, Search], expect: str) -> None:
    gates = Gates(canaries=(Canary(question="word7", expect=("nobody", expect), top_k=1),))
    result = check_gates(gates, metadata=built[0], embedder=REF, documents=20, search=built[1])[-1]
    assert result.passed
    assert result.detail == f"'word7' finds 'nobody' or {expect!r} as number 1 of the documents"


def test_a_canary_that_is_not_found_says_what_is(built: tuple[IndexMetadata, Search]) -> None:
    gates = Gates(canaries=(Canary(question="word7", expect=("words/8.txt",), top_k=1),))
    results = check_gates(gates, metadata=built[0], embedder=REF, documents=20, search=built[1])
    assert _failed(results) == ["canary 1"]
    assert "does not find 'words/8.txt' in the best 1 passages, but 'words/7.txt'" in results[-1].detail
    nothing = check_gates(gates, metadata=built[0], embedder=REF, documents=20, search=lambda question, k: [])
    assert nothing[-1].detail.endswith("but nothing")


@pytest.mark.parametrize(
    ("max_shrink", "before", "passed"),
    [
        *[(0.5, 5, True), (0.5, 40, True), (0.5, 41, False), (0.0, 20, True), (0.0, 21, False)],
        *[(0.1, 22, True), (0.1, 23, False), (1.0, 10_000, True)],
    ],
)
def test_a_version_may_shrink_so_far(
    built: tuple[IndexMetadata, Search], max_shrink: float, before: int, passed: bool
) -> None:
    for what in ("documents", "passages"):
        parent = built[0].model_copy(update={what: before})
        results = check_gates(
            Gates(max_shrink=max_shrink),
            metadata=built[0],
            embedder=REF,
            documents=20,
            search=built[1],
            parent=parent,
            parent_version="v1",
        )
        assert _failed(results) == ([] if passed else [f"max_shrink of {what}"])
        result = next(each for each in results if each.name == f"max_shrink of {what}")
        assert result.against == "v1"
        assert result.detail.startswith(f"20 {what}, {before} in v1; at least ")


def test_another_embedder_than_the_parent_has_is_allowed_and_said(built: tuple[IndexMetadata, Search]) -> None:
    metadata, search = built
    for embedder, said in ((REF, "as v1"), (OTHER, "but v1 was made with 'other'")):
        parent = metadata.model_copy(update={"embedder": embedder})
        results = check_gates(
            Gates(), metadata=metadata, embedder=REF, documents=20, search=search, parent=parent, parent_version="v1"
        )
        assert _failed(results) == []
        assert said in results[-1].detail


def test_what_is_said_of_a_parent_does_not_change_the_version(built: tuple[IndexMetadata, Search]) -> None:
    metadata, search = built
    alone = check_gates(Gates(), metadata=metadata, embedder=REF, documents=20, search=search)
    compared = check_gates(
        Gates(), metadata=metadata, embedder=REF, documents=20, search=search, parent=metadata, parent_version="v1"
    )
    assert len(compared) == len(alone) + 3
    assert metadata.with_gates(compared) == metadata.with_gates(alone)
    assert IndexMetadata.model_validate(metadata.with_gates(compared).to_json()) == metadata.with_gates(alone)


def test_an_index_of_an_older_format_is_to_be_built_again(built: tuple[IndexMetadata, Search], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    manifest = Manifest(
        kind="indexes",
        name="docs",
        version="v0",
        files=describe_files(tmp_path),
        metadata={"format_version": 1, "dimension": 4},
    )
    with pytest.raises(Exception, match="has index format 1, this release reads 2 and 3; build it again"):
        IndexMetadata.of(manifest)
