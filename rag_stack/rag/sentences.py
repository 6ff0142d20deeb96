"""Where the sentences of a text begin and end: prose, lists and documentation with code in it, by character offsets."""

import re
from collections.abc import Iterator
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""Characters `start:end` of a text."""

# An unclosed fence runs to the end: a streamed answer may stop inside one.
_FENCE = re.compile(r"^[ \t]*(`{3,}+|~{3,}+)[^`\n]*+\n.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"(?<!`)(`++)[^`\n](?:.*?[^`\n])??(?<!`)\1(?!`)")
_PROMPT_LINE = re.compile(r"^[ \t]*(?:>>>|\.\.\.)[ \t].*$", re.MULTILINE)

# A list item's mark, a heading's, a quotation's or a table row's: what follows starts a new sentence.
_LINE_MARK = re.compile(r"[ \t]*(?:[-*+•·][ \t]+|\d{1,3}[.)][ \t]+|#{1,6}[ \t]+|>(?!>)[ \t]*)?")
_PARAGRAPH_BREAK = re.compile(r"\n(?=[ \t]*(?:\n|[-*+•·][ \t]|\d{1,3}[.)][ \t]|#{1,6}[ \t]|>|\||$))|(?<=:)\n|\Z")
_MARKERS = r"(?:[ \t]*\[\d{1,3}(?:[ \t]*[,;][ \t]*\d{1,3})*\])"
# Markers after the full stop belong to the sentence before, unless a lower-case word shows that they open the next.
_STOP = re.compile(rf"[.!?…]+[\"'”’)\]*_]*(?P<markers>{_MARKERS}+(?![ \t]*[a-z(]))?(?=\s)")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:e\.g|i\.e|etc|cf|vs|viz|approx|resp|incl|fig|eq|ch|vol|pp|al|dr|mr|mrs|prof|jr|sr|inc|ltd|co"
    r"|u\.s|a\.m|p\.m|(?-i:[A-Z]))\.$",
    re.IGNORECASE,
)
_ENDS_ANYWAY = re.compile(r"(?:etc|co|inc|ltd|jr|sr|al|a\.m|p\.m)\.$", re.IGNORECASE)


def mask_code(text: str) -> str:
    """The text with fenced blocks, inline code and interpreter lines blanked out; every offset stays."""
    for pattern in (_FENCE, _INLINE_CODE, _PROMPT_LINE):
        text = pattern.sub(lambda match: _blank(match.group()), text)
    return text


def mask_fences(text: str) -> str:
    """The text with fenced blocks blanked out: a listing is not a sentence."""
    return _FENCE.sub(lambda match: _blank(match.group()), text)


def split_sentences(text: str) -> tuple[Span, ...]:
    """The spans of the sentences, in order, without white space or list marks at their ends; they never overlap."""
    text = _INLINE_CODE.sub(lambda match: "x" * len(match.group()), text)
    spans: list[Span] = []
    start = 0
    for match in _PARAGRAPH_BREAK.finditer(text):
        spans.extend(_split_paragraph(text, start, match.start()))
        start = match.end()
    return tuple(spans)


def _split_paragraph(text: str, start: int, end: int) -> Iterator[Span]:
    """Sentences of `text[start:end]`, which holds no paragraph break."""
    mark = _LINE_MARK.match(text, start, end)
    begin = mark.end() if mark else start
    if mark and mark.group().lstrip().startswith("#") and (line_end := text.find("\n", begin, end)) >= 0:
        yield from _trim(text, begin, line_end)
        begin = line_end
    for stop in _STOP.finditer(text, begin, end):
        if _is_boundary(text, begin, stop):
            yield from _trim(text, begin, stop.end())
            begin = stop.end()
    yield from _trim(text, begin, end)


def _is_boundary(text: str, begin: int, stop: re.Match[str]) -> bool:
    """Whether a full stop ends its sentence rather than an abbreviation or an ellipsis."""
    if stop.group("markers"):
        return True
    follows = text[stop.end() : stop.end() + 80].lstrip()[:1]
    before = text[max(begin, stop.start() - 12) : stop.start() + 1]
    if _ABBREVIATION.search(before):
        return bool(_ENDS_ANYWAY.search(before)) and follows.isupper()
    return not (stop.group().startswith(("...", "…")) and follows.islower())


def _trim(text: str, start: int, end: int) -> Iterator[Span]:
    """The span without white space at its ends, if it holds a letter or digit at all."""
    piece = text[start:end]
    if any(character.isalnum() for character in piece):
        yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


def _blank(piece: str) -> str:
    return "".join("\n" if character == "\n" else " " for character in piece)
