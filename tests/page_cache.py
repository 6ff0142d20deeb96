"""What the page cache does beside a test."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_TRIES = 10


def undisturbed(look: Callable[[], T]) -> T:
    """What `look` says, from a try during which the kernel took no page back from anybody; of ten, else the last.

    Beside other work on the machine, pages that were just read may be gone again before they are counted. A look that
    is wrong without that is never repeated.
    """
    for _ in range(_TRIES):
        before = _taken_back()
        seen = look()
        if _taken_back() == before:
            break
    return seen


def _taken_back() -> list[int]:
    """The kernel's counts of pages that it reclaimed, and of times that somebody had the page cache dropped."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return [int(count) for name, count in counts.items() if name.startswith("pgsteal_") or name == "drop_pagecache"]


def mapped_kib(path: Path) -> int:
    """What this process has mapped of a file and in memory."""
    mappings = Path("/proc/self/smaps").read_text(encoding="utf-8").split("VmFlags:")
    mine = (mapping for mapping in mappings if f" {path}\n" in mapping)
    return sum(int(line.split()[1]) for mapping in mine for line in mapping.splitlines() if line.startswith("Rss:"))
