"""Which kind of FAISS index fits a corpus: the recipe `auto`."""

from typing import Final

DEFAULT_MEMORY_BUDGET_BYTES: Final = 2 << 30

# 10,400 passages of 384: exact search takes a millisecond on a thread, a tenth of what embedding the question takes.
# Lists of codes are sooner from a quarter of that on, but lose some of the nearest passages.
_FLAT_FLOATS: Final = 4_000_000
_FLOAT_BYTES: Final = 4
_ID_BYTES: Final = 8
# 8-bit vectors alone tell 97 to 99.8 % of the nearest ten apart: what shall find more ranks by exact vectors.
_CODED_RECALL: Final = 0.95
# Up to so many dimensions each has a code of its own: words of 100 need twenty times as many passages ranked again for
# the same recall with half the codes, while MiniLM's 384 have no need of them.
_OWN_CODES: Final = 128


def choose_recipe(
    passages: int, dimension: int, *, memory_budget_bytes: int | None = None, recall_target: float = _CODED_RECALL
) -> str:
    """The recipe for a number of passages, the same on every machine.

    Exact search while that is cheap. Then inverted lists of 4-bit codes, whose best finds are ranked again by the exact
    vectors, as long as both fit into the budget (None: 2 GiB). Then the same by vectors of 8 bits a dimension, a third
    of the memory, where they can reach the recall that is asked for. Then by exact vectors that are read from the disk.
    """
    if passages * dimension <= _FLAT_FLOATS:
        return "Flat"
    # FastScan takes an even number of codes: dimensions are filled up with zeros to a multiple of four.
    padded = -(-dimension // 4) * 4
    halved = padded // 2
    codes = padded if padded <= _OWN_CODES else halved
    pad = f"Pad{padded}," if padded != dimension else ""
    lists = f"{pad}IVF{_lists(passages)}"
    if fits_exact(passages, dimension, memory_budget_bytes=memory_budget_bytes):
        return f"{lists},PQ{codes}x4fs,RFlat"
    if recall_target <= _CODED_RECALL and passages * (halved // 2 + _ID_BYTES + dimension) <= _budget(
        memory_budget_bytes
    ):
        # Half as many lists: each is filled up to 32 codes, and in memory to whole pages.
        return f"{pad}IVF{_lists(passages) // 2},PQ{halved}x4fs,Refine(SQ8)"
    return f"{lists},PQ{halved}x4fs,RFlat"


def fits_exact(passages: int, dimension: int, *, memory_budget_bytes: int | None = None) -> bool:
    """Whether exact vectors, beside their codes and numbers, fit into the budget (None: 2 GiB)."""
    each = dimension * _FLOAT_BYTES + -(-dimension // 4) * 2 + _ID_BYTES
    return passages * each <= _budget(memory_budget_bytes)


def _budget(memory_budget_bytes: int | None) -> int:
    return DEFAULT_MEMORY_BUDGET_BYTES if memory_budget_bytes is None else memory_budget_bytes


def _lists(passages: int) -> int:
    """Between 1 and 2 times the root of the number of passages: a power of two, which stays while a corpus grows.

    More lists are read less of, but all their centroids are compared with every query.
    """
    root = int(4 * passages) ** 0.5
    return 1 << (int(root).bit_length() - 1)
