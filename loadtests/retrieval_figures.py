"""The pure figures of loadtests.retrieval: the least effort that finds enough, memory, and who is best."""

from collections.abc import Callable, Mapping
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


def memory_bytes(rollup: str) -> tuple[int, int]:
    """What a process has for itself, and what it maps from files and has in memory, by its smaps_rollup."""
    kib = {
        name: int(value.split()[0])
        for name, _, value in (line.partition(":") for line in rollup.splitlines())
        if value.strip().endswith("kB")
    }
    return kib["Anonymous"] * 1024, (kib["Rss"] - kib["Anonymous"]) * 1024


def best_peer(cpu_us: Mapping[str, float]) -> str:
    """The arm that takes the least CPU time. Raises ValueError where no peer reached the recall."""
    if not cpu_us:
        raise ValueError("no peer reached the recall, so there is nothing to compare with")
    return min(cpu_us, key=lambda arm: cpu_us[arm])
