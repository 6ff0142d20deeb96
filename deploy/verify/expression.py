"""What a PromQL expression names: series of ours with their matchers, and the labels by which they are added up.

No parser of the whole language, which promtool is: strings, braces, names and groupings, each as it comes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_TEXT: Final = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_TOKEN: Final = re.compile(
    rf"""
    \b(?P<word>by|on)\s*\((?P<by>[^)]*)\)
  | \b(?:without|ignoring|group_left|group_right)\s*\([^)]*\)
  | (?P<name>[A-Za-z_:][\w:]*)?\s*\{{(?P<matchers>(?:[^{{}}"']|{_TEXT})*)\}}
  | (?P<bare>[A-Za-z_:][\w:]*)
  | {_TEXT} | \[[^\]]*\]
    """,
    re.VERBOSE,
)
_MATCHER: Final = re.compile(rf"(\w+)\s*(=~|!~|!=|=)\s*({_TEXT})")
_OURS: Final = re.compile(r"(?:ray_)?rag_stack[_:]")


@dataclass(frozen=True, slots=True)
class Matcher:
    """`label="value"`, or another operator."""

    label: str
    operator: str
    value: str

    @property
    def is_open(self) -> bool:
        """Whether a dashboard's variable stands in it."""
        return "$" in self.value

    def takes_any_of(self, values: frozenset[str]) -> bool:
        """Whether each thing that it asks for is one of these; of a pattern each alternative is one."""
        if not self.operator.endswith("~"):
            return self.value in values
        alternatives = self.value.split("|") if "(" not in self.value else [self.value]
        return all(any(re.fullmatch(each, value) for value in values) for each in alternatives)


@dataclass(frozen=True, slots=True)
class Selector:
    """Series that are asked for: a name, or a pattern of names, and matchers."""

    at: int
    name: str
    matchers: tuple[Matcher, ...] = ()
    is_pattern: bool = False


@dataclass(frozen=True, slots=True)
class Grouping:
    """`by (label, ...)` or `on (label, ...)`, and what it groups."""

    at: int
    word: str
    labels: tuple[str, ...]
    operand: str


def selectors(expression: str) -> Iterator[Selector]:
    """The series of ours."""
    for found in _TOKEN.finditer(expression):
        said = _MATCHER.findall(found["matchers"] or "")
        matchers = tuple(Matcher(label, operator, text[1:-1]) for label, operator, text in said)
        named = next((each for each in matchers if each.label == "__name__"), None)
        name = found["name"] or found["bare"] or (named.value if named else "")
        if _OURS.match(name):
            rest = tuple(each for each in matchers if each is not named)
            is_pattern = named is not None and named.operator == "=~"
            yield Selector(found.start(), name, rest, is_pattern=is_pattern)


def groupings(expression: str) -> Iterator[Grouping]:
    """The labels of each `by` and `on`, with the parenthesis after it; without one, as after `on`, with all."""
    for found in _TOKEN.finditer(expression):
        if found["word"]:
            labels = tuple(each.strip() for each in found["by"].split(",") if each.strip())
            operand = _parenthesis(expression[found.end() :]) or expression
            yield Grouping(found.start(), found["word"], labels, operand)


def _parenthesis(text: str) -> str:
    """What a text begins with, up to its closing bracket; nothing where it begins otherwise."""
    text, depth = text.lstrip(), 0
    for found in re.finditer(rf"{_TEXT}|[()]", text if text.startswith("(") else ""):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0:
            return text[: found.end()]
    return ""
