"""Which replica was asked last about what: a bounded memory of words, one a router."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from math import log
from typing import Final

# About 400 bytes each.
WORDS: Final = 50_000
# How much what a word said of replicas counts still, each time that it is asked about again.
_FADE: Final = 0.8


class Memory:
    """For each word the replicas that were asked about it, the last ones counting most.

    A word that stands in every question says nothing, a rare one much (inverse document frequency, counted as
    questions come). It forgets the words that nobody has asked about for longest.
    """

    def __init__(self, words: int = WORDS) -> None:
        self._limit = words
        self._asked: OrderedDict[int, dict[str, float]] = OrderedDict()
        self._counts: dict[int, int] = {}
        self._questions = 0

    def scores(self, words: Sequence[int], replicas: Collection[str]) -> Mapping[str, float]:
        """For each replica how much of what the words say is known there: 0 to 1, and 1 at most all together."""
        scores = dict.fromkeys(replicas, 0.0)
        total = 0.0
        for word in words:
            weight = self._weight(word)
            total += weight
            told = self._asked.get(word)
            if told is None:
                continue
            everywhere = sum(told.values())
            for name, times in told.items():
                if name in scores:
                    scores[name] += weight * times / everywhere
        return {name: score / total for name, score in scores.items()} if total else scores

    def learn(self, words: Sequence[int], replica: str) -> None:
        """A question with these words goes to this replica."""
        self._questions += 1
        for word in words:
            told = self._asked.setdefault(word, {})
            for name in told:
                told[name] *= _FADE
            told[replica] = told.get(replica, 0.0) + 1.0
            self._asked.move_to_end(word)
            self._counts[word] = self._counts.get(word, 0) + 1
        while len(self._asked) > self._limit:
            del self._counts[self._asked.popitem(last=False)[0]]

    def forget(self, gone: Collection[str]) -> None:
        """These replicas are no more, and their caches with them."""
        for told in self._asked.values():
            for name in gone:
                told.pop(name, None)

    def __len__(self) -> int:
        return len(self._asked)

    def _weight(self, word: int) -> float:
        return log((self._questions + 2) / (self._counts.get(word, 0) + 1))
