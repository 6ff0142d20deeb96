"""Passages that say nearly the same as a better one are left out."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from rag_stack.types import Hit

_WORD: Final = re.compile(r"\w+")
_SHINGLE: Final = 4


def distinct(hits: Iterable[Hit], *, duplicates: float) -> Iterator[Hit]:
    """The hits, best first, without those whose texts share more than `duplicates` (0..1) with one that was given.

    What two texts share is how many runs of four words of the shorter one are in the longer one; so a text that holds
    another one is its duplicate. At 1 only equal texts are. Reads no further than it is asked for.
    """
    seen: set[str] = set()
    kept: list[frozenset[int]] = []
    for hit in hits:
        if hit.passage.text in seen:
            continue
        seen.add(hit.passage.text)
        if duplicates < 1:
            shingles = _shingles(hit.passage.text)
            if any(_shared(shingles, other) > duplicates for other in kept):
                continue
            kept.append(shingles)
        yield hit


def _shingles(text: str) -> frozenset[int]:
    words = _WORD.findall(text.lower())
    if len(words) < _SHINGLE:
        return frozenset([hash(tuple(words))])
    return frozenset(map(hash, zip(*[words[n:] for n in range(_SHINGLE)], strict=False)))


def _shared(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / min(len(one), len(other))
