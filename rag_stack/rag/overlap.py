"""Which stretch of a passage says what a sentence of the answer says, or none: order-aware containment with vetoes."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from sys import getsizeof
from typing import Final, TypeAlias

from rag_stack.rag.sentences import Span
from rag_stack.rag.subjects import headed_sentences, last_named, points_back, title_words
from rag_stack.rag.words import Word, content_words, qualifiers, read_words
from rag_stack.retrieval.recent import Recent
from rag_stack.types import Passage

_IDENTIFIER_WEIGHT = 1.5  # `__enter__` says more about what a sentence is about than "method" does
_DENSITY = 0.6  # the share of a stretch's content words that must be the claim's
_SKIPPED = 3  # a passage may say so many words in between that the claim leaves out, or fewer
_ROUNDING = 1e-9  # in doubt a passage is read
_UNNAMED_WORDS = 6  # a claim whose subject nobody named needs so many different words
_Pair: TypeAlias = tuple[int, int]
"""A word of the claim and the same word in a passage, by their places."""


@dataclass(frozen=True, slots=True)
class Support:
    """A stretch of one passage, `passage.text[start:end]`, and how much of the sentence it holds, 0..1."""

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class _Claim:
    """A sentence of the answer; `subject` is what it points back to, None where it names its own."""

    words: tuple[Word, ...]
    mentioned: frozenset[str]  # every word, stop words too: "the with statement" mentions "with"
    qualifiers: frozenset[str]
    subject: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class _Window:
    """One sentence of a passage, or two that follow each other; `heading` is what it stands under."""

    span: Span
    words: tuple[Word, ...]
    stems: frozenset[str]
    qualifiers: frozenset[str]
    heading: frozenset[str]


class PassageOverlap:
    """The passages of one answer, read once and then asked about every sentence."""

    def __init__(self, passages: Sequence[Passage], *, threshold: float, min_words: int) -> None:
        self._threshold = threshold
        self._min_words = min_words
        self._evidence = tuple(_read(passage.title, passage.text) for passage in passages)
        windows = [window for evidence in self._evidence for window in evidence]
        self._frequency = Counter(stem for window in windows for stem in window.stems)
        self._windows = len(windows)

    def supports(self, sentence: str, *, before: str = "") -> tuple[Support | None, ...]:
        """For each passage, in order, the stretch that supports the sentence best, or None where none does.

        `before` is the answer up to the sentence: what "it" or "the function" means is looked for there.
        """
        words = tuple(word for word in content_words(sentence) if not word.neutral)
        if len({word.stem for word in words}) < self._min_words or sentence.rstrip().endswith("?"):
            return (None,) * len(self._evidence)
        subject = last_named(before) if points_back(sentence) else None
        claim = _Claim(words, frozenset(re.findall(r"\w+", sentence.lower())), qualifiers(sentence), subject)
        weights = self._weights(words)
        return tuple(self._best(claim, weights, evidence) for evidence in self._evidence)

    def _weights(self, words: Sequence[Word]) -> dict[str, float]:
        """Rare words weigh more, and a word that no passage has weighs most: the passages cannot have said it."""
        weights: dict[str, float] = {}
        for word in words:
            rarity = math.log(1 + (self._windows + 1) / (1 + self._frequency[word.stem]))
            weights[word.stem] = rarity * (_IDENTIFIER_WEIGHT if word.identifier else 1.0)
        return weights

    def _best(self, claim: _Claim, weights: Mapping[str, float], evidence: Sequence[_Window]) -> Support | None:
        best: Support | None = None
        asked_of: dict[frozenset[str], tuple[Word, ...]] = {}
        for window in evidence:
            if window.heading not in asked_of:
                asked_of[window.heading] = _asked(claim.words, window.heading)
            asked = asked_of[window.heading]
            if not asked or asked[0].stem not in window.stems or asked[-1].stem not in window.stems:
                continue  # refuted in any case: see _is_refuted
            if len({word.stem for word in asked}) < self._min_words or not _is_about(claim, asked, window):
                continue
            total = sum(weights[word.stem] for word in asked)
            floor = max(self._threshold, best.score + 1e-9 if best else 0.0) * total
            if sum(weights[word.stem] for word in asked if word.stem in window.stems) < floor:
                continue
            pairs = _common_subsequence(asked, window.words, weights)
            score = sum(weights[asked[i].stem] for i, _ in pairs)
            borrows = claim.subject is not None or not _is_asked(claim.words, 0, window.heading, nothing_kept=True)
            if score >= floor and not _is_refuted(claim, asked, window, pairs, borrows=borrows):
                best = Support(start=window.span[0], end=window.span[1], score=score / total)
        return best


def _read_bytes(texts: tuple[str, str], windows: Sequence[_Window]) -> int:
    """Measured: about 200 bytes a word and 512 a window, and up to a fifth more than there are."""
    return sum(map(getsizeof, texts)) + sum(512 + 200 * len(window.words) for window in windows)


# Reading passages is most of a citer's time, and some are the source of many answers. Callers bring their own, too.
_READ: Final[Recent[tuple[str, str], tuple[_Window, ...]]] = Recent(1024, 32 << 20, _read_bytes)


def is_foreign(sentence: str, said: str, *, threshold: float) -> bool:
    """Whether no passage can support a sentence, told without reading them: `said` are all their texts, in lower case.

    A stretch must hold the first and the last word of a claim, and its share of what all words weigh. What nobody says
    weighs most of all words of its kind, and no heading speaks for it.
    """
    words = [word for word in content_words(sentence) if not word.neutral]
    looked: dict[str, bool] = {}

    def unsaid(word: Word) -> bool:
        if word.kind:
            return False
        if (known := looked.get(word.stem)) is None:
            known = looked[word.stem] = _is_unsaid(word.stem, said)
        return known

    # A look goes through all texts, so no more words are looked for than it takes.
    if not words or unsaid(words[0]) or unsaid(words[-1]):
        return True
    share = (1 - threshold) * _IDENTIFIER_WEIGHT
    most = len(words) * share / (threshold + share) + _ROUNDING
    count = 0
    for word in words:
        count += unsaid(word)
        if count > most:
            return True
    return False


def _is_unsaid(stem: str, said: str) -> bool:
    """Whether no word has that stem: a stem is how its words begin, but for the y of "ies" and for numbers."""
    if not stem.isascii() or not stem.isalpha():
        return False
    return stem.removesuffix("y") not in said


def _read(title_text: str, passage_text: str) -> tuple[_Window, ...]:
    """The windows of a passage, from those that were read a moment ago if they are there."""
    key = title_text, passage_text
    windows = _READ.get(key)
    if windows is None:
        windows = _windows(title_text, passage_text)
        _READ.put(key, windows)
    return windows


def _windows(title_text: str, passage_text: str) -> tuple[_Window, ...]:
    """Every sentence of a passage, and then every two that follow each other under one heading, as windows."""
    title = title_words(title_text)
    singles = []
    for (start, end), signature in headed_sentences(passage_text):
        words, limits = read_words(passage_text[start:end])
        said = tuple(word for word in words if not word.neutral)
        # Under a signature its title is no subject any more: a chunk often goes on to the next function.
        heading = signature or title
        singles.append(_Window((start, end), said, frozenset(w.stem for w in said), limits, heading))
    doubles = [
        _Window((a.span[0], b.span[1]), a.words + b.words, a.stems | b.stems, a.qualifiers | b.qualifiers, a.heading)
        for a, b in pairwise(singles)
        if a.heading == b.heading
    ]
    return (*singles, *doubles)


def _asked(words: tuple[Word, ...], heading: frozenset[str]) -> tuple[Word, ...]:
    """The words that the span itself must hold: not what the heading names, nor what sort of thing a name is."""
    kept: list[Word] = []
    for n, word in enumerate(words):
        if _is_asked(words, n, heading, nothing_kept=not kept):
            kept.append(word)
    return tuple(kept)


def _is_asked(words: tuple[Word, ...], n: int, heading: frozenset[str], *, nothing_kept: bool) -> bool:
    word = words[n]
    beside = words[max(0, n - 1) : n] + words[n + 1 : n + 2]
    is_sort = word.kind and (n == 0 or any(other.identifier or other.stem in heading for other in beside))
    # A heading names the subject, and subjects come first.
    is_named = word.stem in heading and (word.identifier or nothing_kept)
    return not is_sort and not is_named


def _is_about(claim: _Claim, asked: Sequence[Word], window: _Window) -> bool:
    """Whether what the claim points back to is what the window speaks of."""
    if claim.subject is None:
        return True
    if not claim.subject:
        return len({word.stem for word in asked}) >= _UNNAMED_WORDS
    return claim.subject <= window.heading | window.stems


def _common_subsequence(claim: Sequence[Word], said: Sequence[Word], weights: Mapping[str, float]) -> list[_Pair]:
    """The heaviest sequence of words that both have in the same order, as index pairs (weighted LCS)."""
    table = [[0.0] * (len(said) + 1) for _ in range(len(claim) + 1)]
    for i in range(len(claim) - 1, -1, -1):
        stem, row, below = claim[i].stem, table[i], table[i + 1]
        weight = weights[stem]
        for j in range(len(said) - 1, -1, -1):
            taken = below[j + 1] + weight if said[j].stem == stem else 0.0
            row[j] = max(taken, below[j], row[j + 1])
    return _drawn_together(list(_trace(table, claim, said)), said)


def _trace(table: Sequence[Sequence[float]], claim: Sequence[Word], said: Sequence[Word]) -> Iterator[_Pair]:
    """The sequence that ends soonest in the passage."""
    i = j = 0
    while i < len(claim) and j < len(said):
        if claim[i].stem == said[j].stem:
            yield i, j
            i, j = i + 1, j + 1
        elif table[i][j] == table[i + 1][j]:
            i += 1
        else:
            j += 1


def _drawn_together(pairs: list[_Pair], said: Sequence[Word]) -> list[_Pair]:
    """The same words of the claim, each as near as it can stand to the next one in the passage."""
    for n in range(len(pairs) - 2, -1, -1):
        i, first = pairs[n]
        stem = said[first].stem
        pairs[n] = i, max(j for j in range(first, pairs[n + 1][1]) if said[j].stem == stem)
    return pairs


def _is_refuted(
    claim: _Claim, asked: Sequence[Word], window: _Window, pairs: Sequence[_Pair], *, borrows: bool
) -> bool:
    """Whether the span shares the claim's words and yet says something else."""
    said = window.words
    return (
        pairs[0][0] > 0
        or pairs[-1][0] < len(asked) - 1
        or (borrows and not _opens(said, pairs[0][1], window.heading | claim.mentioned))
        or _is_scattered(pairs)
        or _lacks_exact(asked, said)
        or _is_limited(claim, window, pairs)
        or _is_denied(asked, said, pairs)
        or _is_replaced(asked, said, pairs)
    )


def _opens(said: Sequence[Word], place: int, known: frozenset[str]) -> bool:
    """Whether nothing stands before that place that could be another subject."""
    return all(word.kind or word.generic or word.stem in known for word in said[:place])


def _is_scattered(pairs: Sequence[_Pair]) -> bool:
    """The words are there, but strewn over a stretch that says more, or something else."""
    stretch = pairs[-1][1] - pairs[0][1] + 1
    return len(pairs) < _DENSITY * stretch or stretch - len(pairs) > _SKIPPED


def _lacks_exact(claim: Sequence[Word], said: Sequence[Word]) -> bool:
    """A number, an identifier or a polar word of the claim is not in the span."""
    stems = {word.stem for word in said}
    return any(word.exact and word.stem not in stems for word in claim)


def _is_limited(claim: _Claim, window: _Window, pairs: Sequence[_Pair]) -> bool:
    """One of the two states a condition, a limit or a number that the other does not."""
    if window.qualifiers - claim.qualifiers or claim.qualifiers - window.qualifiers - {"may"}:
        return True
    stems = {word.stem for word in claim.words}
    within = window.words[pairs[0][1] : pairs[-1][1]]
    return any(word.exact and word.stem not in stems and word.stem not in window.heading for word in within)


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
