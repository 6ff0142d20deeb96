import io
import mmap
from pathlib import Path

import numpy as np
import pytest

from loadtests.retrieval_data import DataError, nearest, parse_wink, problem, recall_of
from loadtests.retrieval_figures import best_peer, least_effort, mapped_bytes, own_bytes


@pytest.mark.parametrize("enough", [1, 2, 3, 7, 8, 63, 64, 99, 100])
def test_the_least_effort_is_found_to_the_number(enough: int) -> None:
    assert least_effort(lambda effort: 0.95 if effort >= enough else 0.949, most=100) == enough


def test_an_effort_that_never_suffices_is_none() -> None:
    asked: list[int] = []
    assert least_effort(lambda effort: asked.append(effort) or 0.5, most=100) is None  # type: ignore[func-returns-value]
    assert max(asked) == 100


def test_memory_is_split_into_own_and_mapped() -> None:
    rollup = "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss:   300 kB\nPss: 20 kB\nAnonymous:   100 kB\n"
    assert own_bytes(rollup) == 100 * 1024
    smaps = (
        "7f10-7f20 r--s 00000000 08:10 1 /cache/index.faiss\nSize: 64 kB\nRss: 40 kB\nAnonymous: 0 kB\n"
        "7f20-7f30 r--s 00000000 08:10 2 /cache/other.faiss\nRss: 7 kB\nVmFlags: rd mr\n"
        "7f30-7f40 rw-p 00000000 00:00 0\nRss: 5 kB\n"
        "7f40-7f50 r--s 00010000 08:10 1 /cache/index.faiss\nRss: 2 kB\n"
    )
    assert mapped_bytes(smaps, Path("/cache/index.faiss")) == 42 * 1024


def test_what_this_process_maps_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert mapped_bytes(Path("/proc/self/smaps").read_text(encoding="utf-8"), path) == 1 << 20


def test_the_best_peer_takes_the_least() -> None:
    assert best_peer({"hnswlib 16": 300.0, "usearch 16": 400.0, "faiss HNSW32": 350.0}) == "hnswlib 16"
    with pytest.raises(ValueError, match="no peer"):
        best_peer({})


def test_word_vectors_are_read_by_number_and_the_unknown_word_is_none() -> None:
    text = b'{"size":2,"words":["a","b]"],"vectors":{"b]":[3,4,5,1],"a":[1,0,1,0]},"unkVector":[0,0,0,-1]}'
    assert parse_wink(io.BytesIO(text), words=2, dimension=2).tolist() == [[1, 0], [3, 4]]
    with pytest.raises(DataError, match="1 of 3"):
        parse_wink(io.BytesIO(text), words=3, dimension=2)


def test_a_problem_has_unit_vectors_other_queries_to_tune_with_and_the_nearest_of_each() -> None:
    rng = np.random.default_rng(0)
    made = problem("x", rng.standard_normal((500, 8)), rng.standard_normal((20, 8)))
    assert np.allclose(np.linalg.norm(made.base, axis=1), 1, atol=1e-6)
    assert len(made.tune) == len(made.test) == 10
    assert not np.isin(made.tune[:, 0], made.test[:, 0]).any()
    expected = [set(np.argsort(-(made.base @ query))[:10].tolist()) for query in made.test]
    assert [set(row) for row in made.test_nearest.tolist()] == expected
    assert recall_of(made.test_nearest, nearest(made.base, made.test)) == 1
    half = made.test_nearest.copy()
    half[:, :5] = -1
    assert recall_of(half, made.test_nearest) == 0.5
