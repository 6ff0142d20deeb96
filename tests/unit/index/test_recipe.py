"""The recipe `auto` at its thresholds; each of its recipes built, mapped, filtered. Real FAISS."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from rag_stack.index.flat_file import FlatFile
from rag_stack.index.recipe import DEFAULT_MEMORY_BUDGET_BYTES, choose_recipe
from rag_stack.index.selector import selecting
from rag_stack.index.training import one_thread, train
from tests.vectors import clustered

_HNSW_BYTES = 384 * 4 + 2 * 32 * 4 + 12


@pytest.mark.parametrize(
    ("passages", "dimension", "budget", "expected"),
    [
        (1, 384, None, "Flat"),
        (20_000, 384, None, "Flat"),
        (20_001, 384, None, "HNSW32"),
        (7_500, 1024, None, "Flat"),
        (7_501, 1024, None, "HNSW32"),
        (20_000, 384, 1, "Flat"),
        (DEFAULT_MEMORY_BUDGET_BYTES // _HNSW_BYTES, 384, None, "HNSW32"),
        (DEFAULT_MEMORY_BUDGET_BYTES // _HNSW_BYTES + 1, 384, None, "IVF8192,PQ192x4fs,RFlat"),
        (10_000_000, 384, 64 << 30, "HNSW32"),
        (1 << 18, 384, 100, "IVF2048,PQ192x4fs,RFlat"),
        ((1 << 18) + 1, 384, 100, "IVF4096,PQ192x4fs,RFlat"),
        (10_000_000, 1024, None, "IVF16384,PQ512x4fs,RFlat"),
        (10_000_000, 66, 1, "Pad68,IVF16384,PQ34x4fs,RFlat"),
        (10_000_000, 1, 1, "Pad4,IVF16384,PQ2x4fs,RFlat"),
    ],
)
def test_auto_goes_by_size_and_budget(passages: int, dimension: int, budget: int | None, expected: str) -> None:
    assert choose_recipe(passages, dimension, memory_budget_bytes=budget) == expected


@pytest.mark.parametrize("dimension", [384, 386, 510])
@pytest.mark.parametrize("budget", [None, 1])
def test_what_auto_chooses_is_built_mapped_and_filtered(tmp_path: Path, dimension: int, budget: int | None) -> None:
    # Of the recipe for more, with fewer lists: it takes seconds otherwise.
    recipe = choose_recipe(21_000, dimension, memory_budget_bytes=budget).replace("IVF1024", "IVF16")
    assert ("HNSW" in recipe) == (budget is None)
    vectors = clustered(3_000, dimension)
    with FlatFile(tmp_path / "vectors.faiss", dimension=dimension) as flat:
        flat.append(vectors)
        flat.complete()
    with one_thread():
        built = train(flat, recipe, "efSearch=3000" if budget is None else "nprobe=16").index
    faiss.write_index(built, str(tmp_path / "index.faiss"))
    index = faiss.read_index(str(tmp_path / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
    allowed = np.zeros(3_000, np.bool_)
    allowed[[5, 70, 2_999]] = True
    for query in ([70], [5], [2_999]):
        _, rows = index.search(vectors[query], 3, params=selecting(index, allowed))
        assert sorted(rows[0].tolist()) == [5, 70, 2_999]
        assert rows[0, 0] == query[0]
