"""Vectors that were computed once: what is kept, found again, refused, and rewritten."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import ArtifactError, IndexVersionError
from rag_stack.index.embeddings import EmbeddingStore, Keys, fingerprint, input_keys
from rag_stack.index.format import Chunking

DIMENSION = 8
Open = Callable[[], EmbeddingStore]


def _vectors(count: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def _keys(first: int, last: int) -> Keys:
    return input_keys([f"text {number}" for number in range(first, last)])


def _opened(root: str, scratch: Path, **options: int) -> EmbeddingStore:
    scratch.mkdir(parents=True, exist_ok=True)
    return EmbeddingStore(
        open_store(root), name="docs", fingerprint="f" * 16, dimension=DIMENSION, scratch=scratch, **options
    )


def _segments(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "root" / "embeddings" / "docs" / ("f" * 16)).glob("*.arrow"))


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens the same vectors again, as another process would."""
    return lambda: _opened(f"file://{tmp_path}/root", tmp_path / "scratch")


def test_what_one_build_embeds_the_next_one_knows(opened: Open) -> None:
    store, keys, vectors = opened(), _keys(0, 100), _vectors(100)
    store.add(keys[:60], vectors[:60])
    store.flush()
    store.add(keys[50:], vectors[50:])
    # Some of it is stored and some still waits.
    assert np.array_equal(store.vectors(keys[::-1]), vectors[::-1])
    assert store.embedded == 100
    store.flush()
    again = opened()
    assert len(again) == 100
    assert not again.missing(keys).any()
    assert again.missing(_keys(100, 103)).all()
    assert np.array_equal(again.vectors(keys), vectors)
    assert again.embedded == 0
    assert np.array_equal(again.keys(), np.sort(keys))


def test_an_unknown_key_is_an_error(opened: Open) -> None:
    with pytest.raises(KeyError):
        opened().vectors(_keys(0, 1))


def test_keys_that_end_in_nul_are_told_apart(opened: Open) -> None:
    keys = np.frombuffer(b"a" * 14 + b"\0\0" + b"a" * 14 + b"b\0" + b"a" * 15 + b"\0", dtype="S16")
    store, vectors = opened(), _vectors(3)
    store.add(keys, vectors)
    store.flush()
    assert np.array_equal(opened().vectors(keys), vectors)


def test_a_segment_is_written_when_enough_waits(tmp_path: Path) -> None:
    store = _opened(f"file://{tmp_path}/root", tmp_path / "scratch", flush_rows=10)
    store.add(_keys(0, 9), _vectors(9))
    assert _segments(tmp_path) == []
    store.add(_keys(9, 10), _vectors(1))
    assert len(_segments(tmp_path)) == 1
    # Nothing but what is stored stays behind.
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_kept(opened: Open, wrong: float) -> None:
    store, vectors = opened(), _vectors(3)
    vectors[1, 2] = wrong
    with pytest.raises(IndexVersionError, match="1 of 3 vectors that are not finite"):
        store.add(_keys(0, 3), vectors)
    store.flush()
    assert len(opened()) == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_broken_segment_is_named_and_its_vectors_are_unknown(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store, keys = opened(), _keys(0, 20)
    store.add(keys[:10], _vectors(10))
    store.flush()
    (broken,) = _segments(tmp_path)
    store.add(keys[10:], _vectors(10, seed=1))
    store.flush()
    content = broken.read_bytes()
    match damage:
        case "truncated":
            broken.write_bytes(content[: len(content) // 2])
        case "flipped":
            broken.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
        case "empty":
            broken.write_bytes(b"")
        case _:
            broken.write_bytes(b"not an Arrow file")
    again = opened()
    assert again.broken == [broken.stem]
    assert broken.stem in caplog.text
    assert again.missing(keys).tolist() == [True] * 10 + [False] * 10
    again.add(keys[:10], _vectors(10))
    again.flush()
    assert np.array_equal(again.vectors(keys[:10]), _vectors(10))


def test_vectors_of_another_dimension_are_not_taken(opened: Open, tmp_path: Path) -> None:
    store = opened()
    store.add(_keys(0, 3), _vectors(3))
    store.flush()
    other = EmbeddingStore(
        open_store(f"file://{tmp_path}/root"), name="docs", fingerprint="f" * 16, dimension=4, scratch=tmp_path
    )
    assert (len(other), len(other.broken)) == (0, 1)


def _write(root: str, scratch: Path, first: int) -> None:
    store = _opened(root, scratch, flush_rows=7)
    for at in range(first, first + 100, 5):
        store.add(_keys(at, at + 5), _vectors(5, seed=at))
    store.flush()


def test_processes_write_side_by_side(opened: Open, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    root = f"file://{tmp_path}/root"
    processes = [
        context.Process(target=_write, args=(root, tmp_path / f"scratch{number}", first))
        for number, first in enumerate((0, 50, 50, 150))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = opened()
    assert store.broken == []
    assert np.array_equal(
        store.vectors(_keys(0, 250)), np.concatenate([_vectors(5, seed=at) for at in range(0, 250, 5)])
    )


def test_compaction_keeps_what_is_used_in_one_segment(opened: Open, tmp_path: Path) -> None:
    writer = opened()
    for number in range(40):
        writer.add(_keys(number * 10, number * 10 + 10), _vectors(10, seed=number))
        writer.flush()
    reader = opened()
    live = _keys(0, 200)
    expected = reader.vectors(live)
    other = opened()
    new = opened()
    new.add(_keys(1000, 1010), _vectors(10, seed=99))
    new.flush()
    assert reader.compact()
    # What was open stays readable, what another build wrote meanwhile stays, what nobody uses is gone.
    assert np.array_equal(other.vectors(_keys(0, 400)[:200]), expected)
    assert len(_segments(tmp_path)) == 2
    again = opened()
    assert again.broken == []
    assert np.array_equal(again.vectors(live), expected)
    assert again.missing(_keys(200, 400)).all()
    assert not again.missing(_keys(1000, 1010)).any()


def test_few_segments_are_left_alone(opened: Open, tmp_path: Path) -> None:
    store = opened()
    store.add(_keys(0, 100), _vectors(100))
    store.flush()
    again = opened()
    again.vectors(_keys(0, 10))
    assert not again.compact()
    # A build that used nothing may have failed: it deletes nothing.
    assert not opened().compact()
    assert len(_segments(tmp_path)) == 1


def test_a_full_disk_is_a_clear_error(opened: Open, tmp_path: Path) -> None:
    store = opened()
    (tmp_path / "scratch").rmdir()
    store.add(_keys(0, 3), _vectors(3))
    with pytest.raises(ArtifactError, match="cannot write"):
        store.flush()


def test_on_s3_segments_are_fetched(bucket: Path, tmp_path: Path) -> None:
    root, keys = f"s3://{bucket.name}/root", _keys(0, 50)
    store = _opened(root, tmp_path / "one")
    store.add(keys, _vectors(50))
    store.flush()
    assert np.array_equal(store.vectors(keys), _vectors(50))
    again = _opened(root, tmp_path / "two")
    assert np.array_equal(again.vectors(keys), _vectors(50))


def test_another_embedder_or_chunking_has_another_fingerprint() -> None:
    def of(digest: str, chunking: Chunking | None, dimension: int) -> str:
        return fingerprint(embedder_digest=digest, chunking=chunking, dimension=dimension)

    found = {of("a", None, 8), of("b", None, 8), of("a", Chunking(), 8), of("a", None, 4)}
    found.add(of("a", Chunking(max_tokens=100), 8))
    assert len(found) == 5
    assert of("a", Chunking(), 8) == of("a", Chunking(), 8)
