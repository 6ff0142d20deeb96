"""How far a build is: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from rag_stack.jobs.embedding import Progress

_LINE_S: Final = 5.0


class BuildProgress:
    """Shows what a build tells of its embedding, on stderr."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("embedding"), BarColumn(), TextColumn("{task.fields[state]}"))
        self._bar = Bar(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("embedding", total=None, state="reading documents") if self._bar else None
        self._told_at = 0.0

    def __call__(self, progress: "Progress") -> None:
        """Show it."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total, state=told(progress))
            return
        now = time.monotonic()
        if now - self._told_at >= _LINE_S or progress.done == progress.total:
            self._told_at = now
            print(f"embedding {told(progress)}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def told(progress: "Progress") -> str:
    """`1,024 of 12,000 passages, 28.1/s, 390 s left`."""
    total = "" if progress.total is None else f" of {progress.total:,}"
    left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
    return f"{progress.done:,}{total} passages, {progress.rate:.1f}/s{left}"
