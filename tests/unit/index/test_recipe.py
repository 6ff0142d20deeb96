"""The recipe `auto` at its thresholds; each of its recipes built, mapped, filtered. Real FAISS."""

import re
from pathlib import Path

import faiss
import numpy as np
import pytest

from rag_stack.index.flat_file import FlatFile
from rag_stack.index.recipe import DEFAULT_MEMORY_BUDGET_BYTES, choose_recipe
from rag_stack.index.selector import selecting
from rag_stack.index.training import one_thread, train
from tests.vectors import clustered

# Exact vectors, 4-bit codes of half the dimensions, and numbers.
_EXACT_BYTES = 384 * 4 + 192 + 8
_CODED_BYTES = 96 + 8 + 384


@pytest.mark.parametrize(
    ("passages", "dimension", "budget", "expected"),
    [
        (1, 384, None, "Flat"),
        (10_416, 384, None, "Flat"),
        (10_417, 384, None, "IVF128,PQ192x4fs,RFlat"),
        (40_000, 100, None, "Flat"),
        (40_001, 100, None, "IVF256,PQ100x4fs,RFlat"),
        (341_479, 100, None, "IVF1024,PQ100x4fs,RFlat"),
        (100_000, 128, None, "IVF512,PQ128x4fs,RFlat"),
        (100_000, 130, None, "Pad132,IVF512,PQ66x4fs,RFlat"),
        (10_416, 384, 1, "Flat"),
        (DEFAULT_MEMORY_BUDGET_BYTES // _EXACT_BYTES, 384, None, "IVF2048,PQ192x4fs,RFlat"),
        (DEFAULT_MEMORY_BUDGET_BYTES // _EXACT_BYTES + 1, 384, None, "IVF1024,PQ192x4fs,Refine(SQ8)"),
        (10_000_000, 384, 64 << 30, "IVF4096,PQ192x4fs,RFlat"),
        (100_000, 384, 100_000 * _CODED_BYTES, "IVF256,PQ192x4fs,Refine(SQ8)"),
        (100_000, 384, 100_000 * _CODED_BYTES - 1, "IVF512,PQ192x4fs,RFlat"),
        (1 << 18, 384, 100, "IVF1024,PQ192x4fs,RFlat"),
        ((1 << 18) - 1, 384, 100, "IVF512,PQ192x4fs,RFlat"),
        (10_000_000, 1024, None, "IVF4096,PQ512x4fs,RFlat"),
        (10_000_000, 66, 1, "Pad68,IVF4096,PQ34x4fs,RFlat"),
        (10_000_000, 1, 1, "Pad4,IVF4096,PQ2x4fs,RFlat"),
    ],
)
def test_auto_goes_by_size_and_budget(passages: int, dimension: int, budget: int | None, expected: str) -> None:
    assert choose_recipe(passages, dimension, memory_budget_bytes=budget) == expected


def test_more_recall_than_8_bits_give_ranks_by_exact_vectors() -> None:
    budget = 100_000 * _CODED_BYTES
    recipe = choose_recipe(100_000, 384, memory_budget_bytes=budget, recall_target=0.99)
    assert recipe == "IVF512,PQ192x4fs,RFlat"


@pytest.mark.parametrize("dimension", [96, 384, 386, 510])
@pytest.mark.parametrize("bytes_a_number", [5, 2, 0])
def test_what_auto_chooses_is_built_mapped_and_filtered(tmp_path: Path, dimension: int, bytes_a_number: int) -> None:
    # Of the recipe for more, with fewer lists: it takes seconds otherwise.
    budget = 42_000 * dimension * bytes_a_number
    recipe = re.sub(r"IVF\d+", "IVF16", choose_recipe(42_000, dimension, memory_budget_bytes=budget))
    assert ("SQ8" in recipe) == (bytes_a_number == 2)
    vectors = clustered(3_000, dimension)
    with FlatFile(tmp_path / "vectors.faiss", dimension=dimension) as flat:
        flat.append(vectors)
        flat.complete()
    with one_thread():
        built = train(flat, recipe, "nprobe=16,k_factor_rf=4").index
    faiss.write_index(built, str(tmp_path / "index.faiss"))
    index = faiss.read_index(str(tmp_path / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
    allowed = np.zeros(3_000, np.bool_)
    allowed[[5, 70, 2_999]] = True
    for query in ([70], [5], [2_999]):
        _, rows = index.search(vectors[query], 3, params=selecting(index, allowed))
        assert sorted(rows[0].tolist()) == [5, 70, 2_999]
        assert rows[0, 0] == query[0]
