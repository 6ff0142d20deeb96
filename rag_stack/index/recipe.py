"""Which kind of FAISS index fits a corpus: the recipe `auto`."""

import math
from typing import Final

DEFAULT_MEMORY_BUDGET_BYTES: Final = 2 << 30

# 20,000 vectors of 384: exact search takes 0.9 ms a query on a thread, a graph 0.2 ms with what it misses.
_FLAT_FLOATS: Final = 20_000 * 384
_LINKS: Final = 32
_FLOAT_BYTES: Final = 4
# Twice the links on the lowest level, a thirtieth of the passages on the next, and where each one's links begin.
_GRAPH_BYTES: Final = 2 * _LINKS * 4 + 12


def choose_recipe(passages: int, dimension: int, *, memory_budget_bytes: int | None = None) -> str:
    """The recipe for a number of passages, the same on every machine.

    Exact search while that is cheap. Then a graph over the vectors, as long as both fit into the budget (None: 2 GiB):
    every query walks through all of it. Then inverted lists of 4-bit codes, two dimensions each, whose best finds are
    ranked again by the vectors on the disk.
    """
    if passages * dimension <= _FLAT_FLOATS:
        return "Flat"
    budget = DEFAULT_MEMORY_BUDGET_BYTES if memory_budget_bytes is None else memory_budget_bytes
    if passages * (dimension * _FLOAT_BYTES + _GRAPH_BYTES) <= budget:
        return f"HNSW{_LINKS}"
    # FastScan takes an even number of codes: dimensions are filled up with zeros to a multiple of four.
    padded = -(-dimension // 4) * 4
    pad = f"Pad{padded}," if padded != dimension else ""
    return f"{pad}IVF{_lists(passages)},PQ{padded // 2}x4fs,RFlat"


def _lists(passages: int) -> int:
    """Between 4 and 8 times the root of the number of passages: a power of two, which stays while a corpus grows."""
    return int(2 ** math.ceil(math.log2(4 * math.sqrt(passages))))
