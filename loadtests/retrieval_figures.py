"""The pure figures of loadtests.retrieval: the least effort that finds enough, memory, and who is best."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

TARGET: Final = 0.95


def least_effort(recall: Callable[[int], float], *, most: int, target: float = TARGET) -> int | None:
    """The smallest effort of 1 to `most` whose recall reaches the target; None where none does. Recall rises with it.

    Every whole number is tried for, so that a peer is not charged for a grid's steps.
    """
    low, high = 0, 1
    while recall(min(high, most)) < target:
        if high >= most:
            return None
        low, high = high, high * 2
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if recall(middle) >= target:
            high = middle
        else:
            low = middle
    return high


def own_bytes(rollup: str) -> int:
    """What a process has for itself alone, by its smaps_rollup."""
    return _sum(rollup.splitlines(), "Anonymous")


def mapped_bytes(smaps: str, path: Path) -> int:
    """What a process has mapped of a file and in memory, by its smaps."""
    lines, mine = [], False
    for line in smaps.splitlines():
        if not line.split(maxsplit=1)[0].endswith(":"):  # a mapping's head: addresses, and the file at the end
            mine = line.endswith(f" {path}")
        elif mine:
            lines.append(line)
    return _sum(lines, "Rss")


def _sum(lines: Iterable[str], name: str) -> int:
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def best_peer(cpu_us: Mapping[str, float]) -> str:
    """The arm that takes the least CPU time. Raises ValueError where no peer reached the recall."""
    if not cpu_us:
        raise ValueError("no peer reached the recall, so there is nothing to compare with")
    return min(cpu_us, key=lambda arm: cpu_us[arm])
