"""How many fewer tokens than bytes passages take: a prompt of passages that were counted is not counted again."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

from rag_stack.types import Hit

# An entry takes about 0.2 kB.
_MAX_PASSAGES: Final = 16_384


class TokenSpare:
    """Remembered by passage, those longest unused dropped first. Thread-safe."""

    def __init__(self, *, max_passages: int = _MAX_PASSAGES) -> None:
        self._spare: OrderedDict[int, int] = OrderedDict()
        self._max_passages = max_passages
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._spare)

    def known(self, hits: Sequence[Hit]) -> int | None:
        """By how many tokens all of them stay below their bytes; None where one was never counted."""
        spare = [self._spare.get(_key(hit)) for hit in hits]
        return None if None in spare else sum(each or 0 for each in spare)

    def counted(
        self, hits: Sequence[Hit], blocks: Sequence[str], count: Callable[[Sequence[str]], Sequence[int]]
    ) -> int:
        """The same with none left out: `blocks` are the hits as a prompt has them, `count` tells tokens. Blocking."""
        keys = [_key(hit) for hit in hits]
        with self._lock:
            spare = {key: self._spare.get(key) for key in keys}
            for key, known in spare.items():
                if known is not None:
                    self._spare.move_to_end(key)
        new = {key: block for key, block in zip(keys, blocks, strict=True) if spare[key] is None}
        if new:
            # Outside the lock: it takes milliseconds.
            tokens = count(list(new.values()))
            found = {key: len(block.encode()) - n for (key, block), n in zip(new.items(), tokens, strict=True)}
            spare.update(found)
            with self._lock:
                self._spare.update(found)
                while len(self._spare) > self._max_passages:
                    self._spare.popitem(last=False)
        return sum(spare[key] or 0 for key in keys)


def _key(hit: Hit) -> int:
    return hash((hit.passage.title, hit.passage.text))
