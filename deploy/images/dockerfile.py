"""A Dockerfile as stages of instructions: as much of the language as this project's files use."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_VARIABLE: Final = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_FLAG: Final = re.compile(r"--(\S+?)=(\S+)\s+")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `flags` are its `--name=value`s, `value` is the rest with continuation lines joined."""

    line: int
    keyword: str
    flags: tuple[tuple[str, str], ...]
    value: str


@dataclass(frozen=True, slots=True)
class Stage:
    """What stands between one FROM and the next; `base` is an image or an earlier stage's name."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]

    def of(self, keyword: str) -> tuple[Instruction, ...]:
        return tuple(one for one in self.instructions if one.keyword == keyword)


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """`arguments` are the ARGs before the first FROM, with their defaults."""

    arguments: dict[str, str]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        return next(one for one in self.stages if one.name == name)


def parse(path: Path) -> Dockerfile:
    """Read a file; ValueError for a heredoc or a keyword in lower case, which this project does not use."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for one in _instructions(path):
        if one.keyword == "FROM":
            base, _, name = expand(one.value, arguments).partition(" AS ")
            stages.append(Stage(name or str(len(stages)), base, ()))
        elif stages:
            last = stages[-1]
            stages[-1] = Stage(last.name, last.base, (*last.instructions, one))
        elif one.keyword == "ARG":
            name, _, default = one.value.partition("=")
            arguments[name] = default
        else:
            raise ValueError(f"{path}:{one.line}: expected ARG or FROM first, got {one.keyword}")
    return Dockerfile(arguments, tuple(stages))


def expand(value: str, variables: dict[str, str]) -> str:
    """Put variables into a value; a name that is unknown becomes nothing, as Docker does it."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), value)


def pairs(value: str) -> dict[str, str]:
    """The `NAME=value`s of an ENV or LABEL; a value may be quoted."""
    return {name: quoted or plain for name, quoted, plain in re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S*))', value)}


def _instructions(path: Path) -> list[Instruction]:
    found: list[Instruction] = []
    parts: list[str] = []
    start = 0
    for number, raw in enumerate(path.read_text().splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        start = start if parts else number
        parts.append(line.removesuffix("\\").strip())
        if line.endswith("\\"):
            continue
        keyword, _, value = " ".join(parts).partition(" ")
        if not keyword.isupper() or value.startswith("<<"):
            raise ValueError(f"{path}:{start}: expected KEYWORD value, got {keyword} {value[:20]}")
        found.append(_with_flags(start, keyword, value))
        parts = []
    return found


def _with_flags(line: int, keyword: str, value: str) -> Instruction:
    flags: list[tuple[str, str]] = []
    while keyword in {"RUN", "COPY", "FROM"} and (match := _FLAG.match(value)):
        flags.append((match[1], match[2]))
        value = value[match.end() :].strip()
    return Instruction(line, keyword, tuple(flags), value)
