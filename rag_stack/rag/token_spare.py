"""How many fewer tokens than bytes passages take: a prompt of passages that were counted is not counted again."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

from rag_stack.types import Hit

# An entry takes about 0.2 kB.
_MAX_PASSAGES: Final = 16_384
# Tokens that a character spares: English under most vocabularies spares three quarters of one.
_LIKELY: Final = 0.6


class TokenSpare:
    """Remembered by passage, those longest unused dropped first. Thread-safe."""

    def __init__(self, *, max_passages: int = _MAX_PASSAGES) -> None:
        self._spare: OrderedDict[int, int] = OrderedDict()
        self._max_passages = max_passages
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._spare)

    def known(self, hits: Sequence[Hit]) -> int:
        """By how many tokens they stay below their bytes, at least: those never counted are taken to have as many."""
        return sum(self._spare.get(_key(hit), 0) for hit in hits)

    def counted(self, hits: Sequence[Hit], blocks: Sequence[str], *, enough: int, count: Callable[[str], int]) -> int:
        """The same, with so many of the passages counted that it is `enough`, or all of them. Blocking.

        `blocks` are the hits as a prompt has them, `count` tells a text's tokens. A tokenizer's time goes by the byte,
        so the shortest is counted that is likely to be enough, and the longest where none is.
        """
        keys = [_key(hit) for hit in hits]
        with self._lock:
            spare = {key: self._spare.get(key) for key in keys}
            for key, known in spare.items():
                if known is not None:
                    self._spare.move_to_end(key)
        total = sum(spare[key] or 0 for key in keys)
        unknown = {key: block for key, block in zip(keys, blocks, strict=True) if spare[key] is None}
        while unknown and total < enough:
            sizes = {key: len(block) for key, block in unknown.items()}
            likely = [key for key, size in sizes.items() if _LIKELY * size >= enough - total]
            key = min(likely, key=sizes.__getitem__) if likely else max(sizes, key=sizes.__getitem__)
            block = unknown.pop(key)
            # Outside the lock: it takes milliseconds.
            found = len(block.encode()) - count(block)
            total += found * keys.count(key)
            self._keep(key, found)
        return total

    def _keep(self, key: int, spare: int) -> None:
        with self._lock:
            self._spare[key] = spare
            while len(self._spare) > self._max_passages:
                self._spare.popitem(last=False)


def _key(hit: Hit) -> int:
    return hash((hit.passage.title, hit.passage.text))
