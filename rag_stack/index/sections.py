"""The parts of a document between its headings."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, TypeAlias

from markdown_it import MarkdownIt

TextFormat: TypeAlias = Literal["markdown", "text"]

_SEPARATOR: Final = " > "
_UNDERLINE: Final = re.compile(r"([=\-~^\"'`*+#:.])\1{2,}\s*$")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what follows it up to the next: `start:end` in characters, and the path of its headings."""

    start: int
    end: int
    title: str


@dataclass(frozen=True, slots=True)
class _Heading:
    line: int
    level: int
    title: str
    body_line: int


def sections(text: str, *, text_format: TextFormat) -> list[Section]:
    """Cut at headings. The sections follow each other without a gap and cover the whole text.

    A heading without a body stays with the section that follows it.
    """
    lines = text.splitlines(keepends=True) if text_format == "text" else _markdown_lines(text)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    headings = list(_underlined(lines) if text_format == "text" else _markdown(text))
    found: list[Section] = []
    start = 0
    if headings and text[: offsets[headings[0].line]].strip():
        start = offsets[headings[0].line]
        found.append(Section(0, start, ""))
    for path, heading, following in _paths(headings):
        end = offsets[following.line] if following else len(text)
        if following and not text[offsets[heading.body_line] : end].strip():
            continue
        found.append(Section(start, end, _SEPARATOR.join(path)))
        start = end
    return found or [Section(0, len(text), "")]


def _paths(headings: list[_Heading]) -> Iterator[tuple[list[str], _Heading, _Heading | None]]:
    """Each heading with the titles that lead to it and the heading that follows."""
    stack: list[_Heading] = []
    for heading, following in zip(headings, [*headings[1:], None], strict=False):
        while stack and stack[-1].level >= heading.level:
            stack.pop()
        stack.append(heading)
        yield [each.title for each in stack], heading, following


def _markdown_lines(text: str) -> list[str]:
    """Lines as Markdown counts them: only a line feed, a carriage return or both end one."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)


def _markdown(text: str) -> Iterator[_Heading]:
    tokens = MarkdownIt("commonmark").parse(text)
    for token, inline in pairwise(tokens):
        # Headings inside quotes and lists are theirs, not the document's.
        if token.type == "heading_open" and token.level == 0 and token.map:
            yield _Heading(token.map[0], int(token.tag[1]), " ".join(inline.content.split()), token.map[1])


def _underlined(lines: Iterable[str]) -> Iterator[_Heading]:
    """Headings as in reStructuredText: a line, under it a row of one character; levels in order of appearance."""
    levels: list[str] = []
    padded = ["", *(line.strip("\r\n") for line in lines)]
    for number in range(1, len(padded) - 1):
        title, underline = padded[number], padded[number + 1]
        mark = _UNDERLINE.fullmatch(underline)
        if not mark or not title.strip() or title[0].isspace() or _UNDERLINE.fullmatch(title):
            continue
        if len(underline.rstrip()) < min(len(title.rstrip()), 4):
            continue
        overlined = padded[number - 1].rstrip() == underline.rstrip()
        if padded[number - 1].strip() and not overlined:
            continue
        style = mark.group(1) * (2 if overlined else 1)
        if style not in levels:
            levels.append(style)
        first = number - 1 if overlined else number
        yield _Heading(first - 1, levels.index(style), " ".join(title.split()), number + 1)
