"""The markers `[1]` that a model writes after what it took from a source."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rag_stack.rag.sentences import mask_code

_GROUP = r"\[\s*\d{1,3}(?:\s*[,;]\s*\d{1,3})*\s*\]"
# Not `a[1]`, `f(x)[1]`, `[[1]]`, `f([1])` or `x = [1]`, which are code, nor `[1](url)` and `[1]: url`, which are links.
_NOT_AFTER = r"(?<![\w\])}\[\"'`=+*/<>])(?<![\w.]\()(?<![=+*/<>]\s)"
_NOT_BEFORE = r"(?![\[(\]\w])(?!:\s*\S)"
_RUN = re.compile(rf"{_NOT_AFTER}(?:{_GROUP}\s?)*{_GROUP}{_NOT_BEFORE}")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Marker:
    """One number of a marker and where its brackets stand in the answer."""

    number: int
    start: int
    end: int


def find_markers(answer: str) -> tuple[Marker, ...]:
    """The markers in an answer, in order; code, inline or fenced, holds none."""
    return tuple(_markers(mask_code(answer)))


def blank_markers(answer: str) -> str:
    """The answer with its markers blanked out; every offset stays."""
    for marker in find_markers(answer):
        answer = answer[: marker.start] + " " * (marker.end - marker.start) + answer[marker.end :]
    return answer


def _markers(prose: str) -> Iterator[Marker]:
    for run in _RUN.finditer(prose):
        for group in re.finditer(_GROUP, run.group()):
            start = run.start() + group.start()
            for number in _NUMBER.findall(group.group()):
                yield Marker(number=int(number), start=start, end=start + len(group.group()))
