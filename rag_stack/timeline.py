"""Where a start's time went: spans of several processes, and which of them the start was waiting for at each instant.

All times are Unix seconds, so that spans of processes on several nodes can stand in one report.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Span:
    """One stage in one process, from `start_s` to `end_s`.

    kind         of the artifact that it moves, "models" or "indexes"; empty where none is moved
    size_bytes   how much it moves; 0 where nothing is
    source       from where: a tier, or the loader that reads the weights
    beside       it runs beside the stages that the start waits for, and counts only where none of them runs
    """

    name: str
    start_s: float
    end_s: float
    process: str = ""
    kind: str = ""
    size_bytes: int = 0
    source: str = ""
    beside: bool = False

    @property
    def seconds(self) -> float:
        """Never negative, also when the clock was set back meanwhile."""
        return max(0.0, self.end_s - self.start_s)

    @property
    def gb_per_s(self) -> float:
        """Decimal gigabytes a second."""
        return self.size_bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0

    def to_wire(self) -> dict[str, Any]:
        """Plain values, to cross a process border."""
        return asdict(self)

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_wire` gave."""
        return cls(**fields)


class Timeline:
    """Collects the spans of one process in the order in which they end. Threads may share it."""

    def __init__(self, *, process: str = "", beside: bool = False) -> None:
        self._process = process
        self._beside = beside
        self._spans: list[Span] = []

    def add(
        self, name: str, start_s: float, end_s: float, *, kind: str = "", size_bytes: int = 0, source: str = ""
    ) -> Span:
        """Keep a span of this process that was timed elsewhere."""
        span = Span(name, start_s, end_s, self._process, kind, size_bytes, source, self._beside)
        self._spans.append(span)
        return span

    @contextmanager
    def time(self, name: str, *, kind: str = "", source: str = "") -> Iterator[None]:
        """Time the block; one that fails leaves no span."""
        start_s = time.time()
        yield
        self.add(name, start_s, time.time(), kind=kind, source=source)

    def spans(self) -> tuple[Span, ...]:
        """What has ended so far."""
        return tuple(self._spans)


@dataclass(frozen=True, slots=True)
class Stage:
    """A span's part of the whole: `critical_s` are the seconds in which the start waited for it and nothing inner."""

    span: Span
    critical_s: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A whole from `start_s` to `end_s`: its stages' critical seconds and `unnamed_s` add up to `seconds`."""

    start_s: float
    end_s: float
    stages: tuple[Stage, ...]
    unnamed_s: float

    @property
    def seconds(self) -> float:
        """The whole."""
        return max(0.0, self.end_s - self.start_s)

    @property
    def unnamed_share(self) -> float:
        """The part of the whole that no span names, 0 to 1."""
        return self.unnamed_s / self.seconds if self.seconds > 0 else 0.0


def break_down(spans: Sequence[Span], *, start_s: float, end_s: float) -> Breakdown:
    """Give every instant of the whole to one span.

    That is the one that began last, since it is the innermost; spans beside the critical path come after all others.
    """
    ordered = sorted(spans, key=lambda span: (span.start_s, -span.end_s))
    edges = {min(max(edge, start_s), end_s) for span in ordered for edge in (span.start_s, span.end_s)}
    critical, unnamed_s = [0.0] * len(ordered), 0.0
    for begin, end in pairwise(sorted(edges | {start_s, end_s})):
        covering = [n for n, span in enumerate(ordered) if span.start_s <= begin and end <= span.end_s]
        if covering:
            critical[max(covering, key=lambda n: (not ordered[n].beside, n))] += end - begin
        else:
            unnamed_s += end - begin
    stages = tuple(Stage(span, seconds) for span, seconds in zip(ordered, critical, strict=True))
    return Breakdown(start_s, end_s, stages, unnamed_s)


def process_start(pid: int) -> float:
    """When a process started, to the hundredth of a second. Linux. Raises OSError when there is none."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The name stands in parentheses and may hold anything; the start is the 22nd field, in ticks since boot.
    ticks = int(stat.rpartition(")")[2].split()[19])
    since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - since_boot_s
