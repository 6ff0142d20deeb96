"""Which stretch of a passage says what a sentence of the answer says, or none: order-aware containment with vetoes."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from rag_stack.rag.sentences import Span, split_sentences
from rag_stack.rag.words import Word, content_words
from rag_stack.types import Passage

_IDENTIFIER_WEIGHT = 1.5  # `__enter__` says more about what a sentence is about than "method" does


_DENSITY = 0.4  # the share of a stretch's content words that must be the claim's
_LEAD = 2  # so many words at the claim's beginning that the span lacks are another subject
_Pair: TypeAlias = tuple[int, int]
"""A word of the claim and the same word in a passage, by their places."""


@dataclass(frozen=True, slots=True)
class Support:
    """A stretch of one passage, `passage.text[start:end]`, and how much of the sentence it holds, 0..1."""

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class _Window:
    """One sentence of a passage, or two that follow each other."""

    span: Span
    words: tuple[Word, ...]
    stems: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """A passage made ready: its windows, shortest first, and the words of its title, which name its subject."""

    windows: tuple[_Window, ...]
    title: frozenset[str]


class PassageOverlap:
    """The passages of one answer, read once and then asked about every sentence."""

    def __init__(self, passages: Sequence[Passage], *, threshold: float, min_words: int) -> None:
        self._threshold = threshold
        self._min_words = min_words
        self._evidence = tuple(_read(passage) for passage in passages)
        windows = [window for evidence in self._evidence for window in evidence.windows]
        self._frequency = Counter(stem for window in windows for stem in window.stems)
        self._windows = len(windows)

    def supports(self, sentence: str) -> tuple[Support | None, ...]:
        """For each passage, in order, the stretch that supports the sentence best, or None where none does."""
        claim = content_words(sentence)
        if len({word.stem for word in claim}) < self._min_words or sentence.rstrip().endswith("?"):
            return (None,) * len(self._evidence)
        weights = self._weights(claim)
        return tuple(self._best(claim, weights, evidence) for evidence in self._evidence)

    def _weights(self, claim: Sequence[Word]) -> dict[str, float]:
        """Rare words weigh more, and a word that no passage has weighs most: the passages cannot have said it."""
        weights: dict[str, float] = {}
        for word in claim:
            rarity = math.log(1 + (self._windows + 1) / (1 + self._frequency[word.stem]))
            weights[word.stem] = rarity * (_IDENTIFIER_WEIGHT if word.identifier else 1.0)
        return weights

    def _best(self, claim: Sequence[Word], weights: Mapping[str, float], evidence: _Evidence) -> Support | None:
        best: Support | None = None
        # What the passage is about is known from its title and need not stand in the span as well.
        asked = [word for word in claim if word.stem not in evidence.title]
        total = sum(weights[word.stem] for word in asked)
        if len({word.stem for word in asked}) < self._min_words:
            return None
        for window in evidence.windows:
            floor = max(self._threshold, best.score + 1e-9 if best else 0.0) * total
            if sum(weights[word.stem] for word in asked if word.stem in window.stems) < floor:
                continue
            pairs = _common_subsequence(asked, window.words, weights)
            score = sum(weights[asked[i].stem] for i, _ in pairs)
            if score >= floor and not _is_refuted(asked, window.words, pairs):
                best = Support(start=window.span[0], end=window.span[1], score=score / total)
        return best


def _read(passage: Passage) -> _Evidence:
    """Every sentence of the passage, and every two that follow each other, as windows."""
    spans = split_sentences(passage.text)
    words = [content_words(passage.text[start:end]) for start, end in spans]
    singles = [_Window(span, said, frozenset(w.stem for w in said)) for span, said in zip(spans, words, strict=True)]
    doubles = [_Window((a.span[0], b.span[1]), a.words + b.words, a.stems | b.stems) for a, b in pairwise(singles)]
    title = frozenset(word.stem for word in content_words(passage.title))
    return _Evidence(windows=(*singles, *doubles), title=title)


def _common_subsequence(claim: Sequence[Word], said: Sequence[Word], weights: Mapping[str, float]) -> list[_Pair]:
    """The heaviest sequence of words that both have in the same order, as index pairs (weighted LCS)."""
    table = [[0.0] * (len(said) + 1) for _ in range(len(claim) + 1)]
    for i in range(len(claim) - 1, -1, -1):
        stem, row, below = claim[i].stem, table[i], table[i + 1]
        weight = weights[stem]
        for j in range(len(said) - 1, -1, -1):
            taken = below[j + 1] + weight if said[j].stem == stem else 0.0
            row[j] = max(taken, below[j], row[j + 1])
    return list(_trace(table))


def _trace(table: Sequence[Sequence[float]]) -> Iterator[_Pair]:
    i = j = 0
    while i < len(table) - 1 and j < len(table[0]) - 1:
        if table[i][j] == table[i + 1][j]:
            i += 1
        elif table[i][j] == table[i][j + 1]:
            j += 1
        else:
            yield i, j
            i, j = i + 1, j + 1


def _is_refuted(claim: Sequence[Word], said: Sequence[Word], pairs: Sequence[_Pair]) -> bool:
    """Whether the span shares the claim's words and yet says something else."""
    return (
        pairs[0][0] >= _LEAD
        or _is_scattered(pairs)
        or _lacks_exact(claim, said)
        or _is_denied(claim, said, pairs)
        or _is_replaced(claim, said, pairs)
    )


def _is_scattered(pairs: Sequence[_Pair]) -> bool:
    """The words are there, but strewn over a long stretch that is about something else."""
    return len(pairs) < _DENSITY * (pairs[-1][1] - pairs[0][1] + 1)


def _lacks_exact(claim: Sequence[Word], said: Sequence[Word]) -> bool:
    """A number, an identifier or a polar word of the claim is not in the span."""
    stems = {word.stem for word in said}
    return any(word.exact and word.stem not in stems for word in claim)


def _is_denied(claim: Sequence[Word], said: Sequence[Word], pairs: Sequence[_Pair]) -> bool:
    """One of the two negates what the other affirms."""
    matched = {i for i, _ in pairs}
    unmatched = any(word.negated and i not in matched for i, word in enumerate(claim))
    return unmatched or any(claim[i].negated != said[j].negated for i, j in pairs)


def _is_replaced(claim: Sequence[Word], said: Sequence[Word], pairs: Sequence[_Pair]) -> bool:
    """Between two shared words the claim has another word than the span: "population variance", "sample variance"."""
    stems = {word.stem for word in said}
    return any(
        next_j > j + 1 and any(claim[k].stem not in stems for k in range(i + 1, next_i))
        for (i, j), (next_i, next_j) in pairwise(pairs)
    )
