"""Cuts a document into chunks that fit the embedder. A chunk is always a verbatim slice of the document."""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rag_stack.index.sections import Section, TextFormat, sections

# How good a place is for a cut, by what stands before it.
_INSIDE, _SPACE, _LINE, _SENTENCE, _PARAGRAPH = range(5)
_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\r?\n")
_CLOSING: Final = "\"')]}”’»"


@dataclass(frozen=True, slots=True)
class Chunk:
    """`text[start:end]` of a document, under the path of its headings (empty where there is none)."""

    start: int
    end: int
    title: str


@dataclass(frozen=True, slots=True)
class _Words:
    """A document's words: where they start, how good a cut before each is, and running totals of tokens."""

    starts: npt.NDArray[np.int64]
    breaks: npt.NDArray[np.int8]
    totals: npt.NDArray[np.int64]


def chunk(
    text: str,
    *,
    tokenizer: Tokenizer,
    max_tokens: int,
    overlap_tokens: int,
    text_format: TextFormat = "text",
) -> list[Chunk]:
    """Cut at headings first, then at paragraphs, sentences, lines or words, as the budget allows.

    No chunk has more than `max_tokens` tokens of the embedder (its special tokens not counted). Neighbours in a section
    share at most `overlap_tokens`, whole sentences or lines only. Every character that is not blank is in a chunk;
    a text without any token gives none. The document is tokenized once.
    """
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise ValueError(f"overlap_tokens must be 0 to half of max_tokens ({max_tokens}), got {overlap_tokens}")
    words = _words(text, tokenizer, max_tokens)
    if not len(words.starts):
        return []
    chunks: list[Chunk] = []
    for section, first, last in _with_words(sections(text, text_format=text_format), words):
        for left, right in _windows(words, first, last, max_tokens=max_tokens, overlap_tokens=overlap_tokens):
            start = section.start if left == first else int(words.starts[left])
            end = section.end if right == last else int(words.starts[right])
            chunks.append(_stripped(text, start, end, section.title))
    return chunks


def token_count(tokenizer: Tokenizer, text: str) -> int:
    """How many tokens a text has, special ones not counted."""
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def _words(text: str, tokenizer: Tokenizer, max_tokens: int) -> _Words:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts: list[int] = []
    ends: list[int] = []
    tokens: list[int] = []
    previous: int | None = None
    for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        if starts and word == previous:
            ends[-1] = end
            tokens[-1] += 1
        else:
            starts.append(start)
            ends.append(end)
            tokens.append(1)
        previous = word
    if tokens and max(tokens) > max_tokens:
        starts, ends, tokens = _split_long(text, tokenizer, max_tokens, starts, ends, tokens)
    breaks = [_PARAGRAPH, *(_quality(text, end, start) for end, start in zip(ends, starts[1:], strict=False))]
    return _Words(
        np.asarray(starts, np.int64),
        np.asarray(breaks[: len(starts)], np.int8),
        np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)]),
    )


def _split_long(
    text: str, tokenizer: Tokenizer, max_tokens: int, starts: list[int], ends: list[int], tokens: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """Cut words that are over the budget in halves until they fit."""
    pieces: list[tuple[int, int, int]] = []
    waiting = list(zip(starts, ends, tokens, strict=True))[::-1]
    while waiting:
        start, end, count = waiting.pop()
        if count <= max_tokens or end - start == 1:
            pieces.append((start, end, count))
            continue
        middle = (start + end) // 2
        for half in ((middle, end), (start, middle)):
            waiting.append((*half, token_count(tokenizer, text[half[0] : half[1]])))
    return [p[0] for p in pieces], [p[1] for p in pieces], [p[2] for p in pieces]


def _quality(text: str, end: int, start: int) -> int:
    gap = text[end:start]
    if not gap or not any(character.isspace() for character in gap):
        return _INSIDE
    if _BLANK_LINE.search(gap):
        return _PARAGRAPH
    if text[max(0, end - 4) : end].rstrip(_CLOSING).endswith((".", "!", "?")):
        return _SENTENCE
    return _LINE if "\n" in gap else _SPACE


def _with_words(found: list[Section], words: _Words) -> list[tuple[Section, int, int]]:
    """Each section with its range of words; one without words (symbols the tokenizer drops) joins its neighbour."""
    result: list[tuple[Section, int, int]] = []
    start = found[0].start
    for section in found:
        first, last = np.searchsorted(words.starts, [start, section.end])
        if first < last:
            result.append((Section(start, section.end, section.title), int(first), int(last)))
            start = section.end
    last_section, first, last = result[-1]
    result[-1] = (Section(last_section.start, found[-1].end, last_section.title), first, last)
    return result


def _windows(words: _Words, first: int, last: int, *, max_tokens: int, overlap_tokens: int) -> list[tuple[int, int]]:
    """Ranges of words that cover first:last, each within the budget."""
    windows: list[tuple[int, int]] = []
    start, covered = first, first
    while covered < last:
        reach = _reach(words, start, last, max_tokens)
        if reach <= covered:
            # The overlap leaves no room for the word that comes next.
            start = covered
            reach = max(_reach(words, start, last, max_tokens), covered + 1)
        end = last if reach == last else _cut(words, start, reach, after=covered, target=max_tokens // 2)
        windows.append((start, end))
        start, covered = _overlap(words, end, overlap_tokens, after=start), end
    return windows


def _reach(words: _Words, start: int, last: int, max_tokens: int) -> int:
    """The furthest end of a window that starts at `start`."""
    return min(last, int(np.searchsorted(words.totals, words.totals[start] + max_tokens, side="right")) - 1)


def _cut(words: _Words, start: int, reach: int, *, after: int, target: int) -> int:
    """The best place to end a window: the last of the best kind of break in its second half."""
    lowest = max(after + 1, int(np.searchsorted(words.totals, words.totals[start] + target)))
    if lowest >= reach:
        return reach
    kinds = words.breaks[lowest : reach + 1]
    return lowest + int(np.flatnonzero(kinds == kinds.max())[-1])


def _overlap(words: _Words, end: int, overlap_tokens: int, *, after: int) -> int:
    """Where the next window starts: as far back as whole sentences or lines fit into the overlap."""
    lowest = max(after + 1, int(np.searchsorted(words.totals, words.totals[end] - overlap_tokens)))
    candidates = np.flatnonzero(words.breaks[lowest:end] >= _LINE)
    return lowest + int(candidates[0]) if len(candidates) else end


def _stripped(text: str, start: int, end: int, title: str) -> Chunk:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return Chunk(start, end, title)
