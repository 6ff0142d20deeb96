"""What `loadtests.overhead` measured so far: settings, prompts and one visit per round, arm and cell, on disk."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.arms import ArmName
from loadtests.closed_loop import Answer, LoadError, Messages

_CELL = re.compile(r"^([1-9]\d*)x([1-9]\d*)$")


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the matrix, written as in "32x8"."""

    max_tokens: int
    concurrency: int

    def __str__(self) -> str:
        return f"{self.max_tokens}x{self.concurrency}"

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """From "MAX_TOKENSxCONCURRENCY". Raises ValueError."""
        match = _CELL.match(text)
        if match is None:
            raise ValueError(f"a cell is MAX_TOKENSxCONCURRENCY, as in 32x8, got {text!r}")
        return cls(int(match.group(1)), int(match.group(2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """All questions asked once of one arm, in one cell of one round. CPU seconds are of all the arm's processes."""

    round: int
    arm: ArmName
    cell: Cell
    start_s: float
    wall_s: float
    cpu_s: float
    client_cpu_s: float
    answers: tuple[Answer, ...]

    @property
    def rps(self) -> float:
        """Requests a second."""
        return len(self.answers) / self.wall_s

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return sum(answer.output_tokens for answer in self.answers) / self.wall_s


@dataclass(frozen=True, slots=True)
class Settings:
    """What must not change between the rounds of one result."""

    release: str
    questions: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """Complete rounds only, and the prompts that our layer built for the questions."""

    settings: Settings
    prompts: tuple[Messages, ...] = ()
    visits: tuple[Visit, ...] = ()

    @property
    def rounds(self) -> int:
        """How many rounds are complete."""
        return len({visit.round for visit in self.visits})

    @property
    def longest_round_s(self) -> float:
        """Seconds of starts and visits in the longest round; 0 where there is none."""
        taken: dict[int, float] = {}
        for visit in self.visits:
            share = visit.start_s / len(self.settings.cells)
            taken[visit.round] = taken.get(visit.round, 0.0) + visit.wall_s + share
        return max(taken.values(), default=0.0)

    def with_round(self, visits: Iterable[Visit], *, prompts: Sequence[Messages]) -> "Log":
        """The same log and one more round."""
        return Log(self.settings, tuple(prompts), (*self.visits, *visits))

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        partial.replace(path)


def resume(path: Path, settings: Settings) -> Log:
    """The log at `path`, to be continued with the same settings. Raises LoadError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        log = _log(document)
    except OSError as exc:
        raise LoadError(f"cannot resume from {path}: {exc.strerror}; leave out --resume to start anew") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise LoadError(f"{path} is not a log of this benchmark ({exc!r}); leave out --resume to start anew") from exc
    if log.settings != settings:
        raise LoadError(
            f"{path} was measured with another release, other questions or other cells "
            f"({', '.join(map(str, log.settings.cells))}); give the same ones, or leave out --resume to start anew"
        )
    return log


def _log(document: dict) -> Log:  # type: ignore[type-arg]
    settings = document["settings"]
    return Log(
        Settings(settings["release"], tuple(settings["questions"]), tuple(Cell(**cell) for cell in settings["cells"])),
        tuple(document["prompts"]),
        tuple(_visit(row) for row in document["visits"]),
    )


def _visit(row: dict) -> Visit:  # type: ignore[type-arg]
    answers = tuple(Answer(**answer) for answer in row["answers"])
    return Visit(**{**row, "cell": Cell(**row["cell"]), "answers": answers})
