"""Recall against exact search, and the search parameters that reach a target. Real FAISS on clustered vectors."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from rag_stack.errors import IndexVersionError
from rag_stack.index.builder import IndexWriter
from rag_stack.index.documents import Document
from rag_stack.index.flat_file import FlatFile, Vectors
from rag_stack.index.format import INDEX_FILE, EmbedderRef, IndexMetadata
from rag_stack.index.training import train
from rag_stack.index.tuning import Exact, apply, reaches, recall_of, tune
from rag_stack.types import Passage
from tests.vectors import clustered

D = 64


def _flat(directory: Path, vectors: Vectors) -> FlatFile:
    with FlatFile(directory / "vectors.faiss", dimension=vectors.shape[1]) as flat:
        flat.append(vectors)
        flat.complete()
    return flat


def _build(directory: Path, vectors: Vectors, **options: object) -> IndexMetadata:
    document = Document("d", "x", "", "")
    passages = [Passage(f"d-{n}", "d", "x", "", "", 0, 1) for n in range(len(vectors))]
    with IndexWriter(directory, dimension=vectors.shape[1]) as writer:
        writer.add(document, passages, vectors)
        return writer.finish(embedder=EmbedderRef(name="seeded", digest="sha256:0"), **options)  # type: ignore[arg-type]


def _names(search_parameters: str) -> list[str]:
    return [each.partition("=")[0] for each in search_parameters.split(",") if each]


@pytest.mark.parametrize("target", [0.6, 0.9, 0.98])
@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        ("Flat", []),
        ("HNSW8", ["efSearch"]),
        ("IVF256,Flat", ["nprobe"]),
        ("IVF256,PQ32x4fs,RFlat", ["nprobe", "k_factor_rf"]),
        ("PCA48,IVF256,SQ8,RFlat", ["nprobe", "k_factor_rf"]),
        ("SQ4,RFlat", ["k_factor_rf"]),
    ],
)
def test_the_cheapest_parameters_that_reach_the_target(
    tmp_path: Path, recipe: str, names: list[str], target: float
) -> None:
    metadata = _build(tmp_path, clustered(12_000, D, spread=1.5), recipe=recipe, recall_target=target)
    assert _names(metadata.search_parameters) == names
    assert target <= metadata.recall <= 1
    assert (metadata.recall_at, metadata.recall_queries, metadata.recall_target) == (10, 200, target)
    assert metadata.training_sample == (0 if recipe in ("Flat", "HNSW8") else 12_000)
    assert metadata.recall == 1 or recipe != "Flat"


def test_more_recall_costs_more(tmp_path: Path) -> None:
    flat = _flat(tmp_path, clustered(12_000, D, spread=1.5))
    index = train(flat, "IVF256,Flat").index
    exact = Exact.of(flat, at=10)
    probes = [int(tune(index, exact, target=target).partition("=")[2]) for target in (0.3, 0.8, 0.99, 1.0)]
    assert probes == sorted(set(probes))
    apply(index, f"nprobe={probes[1]}")
    assert recall_of(index, exact) >= 0.8
    below = max(int(2 ** (step / 2)) for step in range(20) if int(2 ** (step / 2)) < probes[1])
    apply(index, f"nprobe={below}")
    assert not reaches(index, exact, 0.8)


def test_a_target_is_reached_by_more_than_the_luck_of_the_queries(tmp_path: Path) -> None:
    flat = _flat(tmp_path, clustered(12_000, D, spread=1.5))
    index = train(flat, "IVF256,Flat").index
    exact = Exact.of(flat, at=10)
    apply(index, tune(index, exact, target=0.9))
    nearest = np.argsort(-(exact.queries @ exact.vectors.T), axis=1)[:, :10]
    _, rows = index.search(exact.queries, 10)
    recalls = [len(set(a) & set(b)) / 10 for a, b in zip(nearest.tolist(), rows.tolist(), strict=True)]
    error = np.std(recalls) / np.sqrt(len(recalls))
    assert error > 0.002
    assert 0.9 <= np.mean(recalls) - error < 0.95
    assert reaches(index, exact, 0.9)
    assert not reaches(index, exact, round(float(np.mean(recalls)), 4)), "its mean is no more than luck"


@pytest.mark.parametrize("target", [0.8, 0.93])
def test_from_the_disk_more_lists_are_read_to_rank_fewer_vectors_again(tmp_path: Path, target: float) -> None:
    flat = _flat(tmp_path, clustered(12_000, D, spread=1.5))
    index = train(flat, "IVF64,PQ32x4fs,RFlat").index
    exact = Exact.of(flat, at=10)
    chosen = {}
    for in_memory in (True, False):
        text = tune(index, exact, target=target, in_memory=in_memory)
        apply(index, text)
        assert recall_of(index, exact) >= target
        chosen[in_memory] = [int(each.partition("=")[2]) for each in text.split(",")]
    (memory_lists, memory_refined), (disk_lists, disk_refined) = chosen[True], chosen[False]
    # A vector is a page there, sixteen times its bytes.
    assert disk_refined < memory_refined
    assert disk_lists > memory_lists


def test_a_target_out_of_reach_gives_the_best_there_is(tmp_path: Path) -> None:
    vectors = np.random.default_rng(5).standard_normal((3_000, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    metadata = _build(tmp_path, vectors, recipe="IVF32,PQ4x4fs", recall_target=0.95)
    assert metadata.search_parameters == "nprobe=32"
    assert metadata.recall < 0.5
    assert metadata.recall_target == 0.95


def test_given_parameters_win_and_are_measured(tmp_path: Path) -> None:
    vectors = clustered(12_000, D, spread=1.5)
    metadata = _build(tmp_path, vectors, recipe="IVF256,Flat", search_parameters="nprobe=3", recall_target=0.99)
    assert (metadata.search_parameters, metadata.recall_target) == ("nprobe=3", None)
    assert 0.1 < metadata.recall < 0.99
    assert faiss.read_index(str(tmp_path / INDEX_FILE)).nprobe == 3


@pytest.mark.parametrize("search_parameters", ["nonsense=3", "nprobe"])
def test_parameters_that_the_recipe_has_not_are_refused(tmp_path: Path, search_parameters: str) -> None:
    with pytest.raises(IndexVersionError, match="FAISS cannot build and filter"):
        _build(tmp_path, clustered(100, D), recipe="Flat", search_parameters=search_parameters)
    assert list(tmp_path.iterdir()) == []


def test_the_parameters_are_in_the_file(tmp_path: Path) -> None:
    metadata = _build(tmp_path, clustered(12_000, D, spread=1.5), recipe="IVF256,PQ32x4fs,RFlat", recall_target=0.9)
    values = [float(each.partition("=")[2]) for each in metadata.search_parameters.split(",")]
    index = faiss.read_index(str(tmp_path / INDEX_FILE))
    assert [faiss.downcast_index(index.base_index).nprobe, index.k_factor] == values


def test_real_questions_are_measured_too(tmp_path: Path) -> None:
    vectors = clustered(5_000, D)
    easy = _build(tmp_path, vectors, recipe="IVF64,Flat", search_parameters="nprobe=1")
    questions = np.random.default_rng(9).standard_normal((400, D)).astype(np.float32)
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    hard = _build(tmp_path, vectors, recipe="IVF64,Flat", search_parameters="nprobe=1", queries=questions)
    assert hard.recall_queries == 400, "none is made where there are as many real ones"
    assert hard.recall < easy.recall


def test_recall_is_a_share_of_what_exact_search_finds(tmp_path: Path) -> None:
    vectors = clustered(4_000, D, spread=1.5)
    flat = _flat(tmp_path, vectors)
    exact = Exact.of(flat, at=10)
    index = train(flat, "IVF64,Flat", "nprobe=2").index
    nearest = np.argsort(-(exact.queries @ vectors.T), axis=1)[:, :10]
    _, rows = index.search(exact.queries, 10)
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest.tolist(), rows.tolist(), strict=True)])
    assert recall_of(index, exact) == pytest.approx(expected, abs=0.002)
    cosine = (exact.queries @ vectors.T).max(axis=1)
    assert 0.5 < np.median(cosine) < 0.7, "as near to a passage as a question is"


def test_equal_texts_are_equally_good_answers(tmp_path: Path) -> None:
    flat = _flat(tmp_path, np.repeat(clustered(50, D), 100, axis=0))
    exact = Exact.of(flat, at=10)
    for recipe in ("Flat", "IVF16,Flat"):
        index = train(flat, recipe, "" if recipe == "Flat" else "nprobe=16").index
        assert recall_of(index, exact) == 1


@pytest.mark.parametrize("count", [1, 3, 9])
def test_few_passages_are_all_to_be_found(tmp_path: Path, count: int) -> None:
    metadata = _build(tmp_path, clustered(count, D))
    assert (metadata.recall, metadata.recall_at, metadata.recall_queries) == (1, count, count)
