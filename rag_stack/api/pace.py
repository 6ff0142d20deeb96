"""How fast a replica answers, from its newest answers: what a wait is estimated from, and `Retry-After`."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

_NEWEST: Final = 64
RETRY_AFTER_S: Final = (1, 60)


class Pace:
    """Remembers how long the newest answers held their slots, and how long each took to its first token."""

    def __init__(self, *, slots: int) -> None:
        self._slots = slots
        self._held_s: deque[float] = deque(maxlen=_NEWEST)
        self._first_s: deque[float] = deque(maxlen=_NEWEST)

    def answered(self, held_s: float) -> None:
        """An answer is complete; it held its slot for so long."""
        self._held_s.append(held_s)

    def began(self, first_s: float) -> None:
        """A stream got its first token so long after it got its slot."""
        self._first_s.append(first_s)

    def slot_s(self) -> float:
        """Seconds between two slots that become free while all are taken; 0 before anything was measured."""
        return sum(self._held_s) / len(self._held_s) / self._slots if self._held_s else 0.0

    def wait_s(self, ahead: int) -> float:
        """How long one waits with so many sequences ahead of it."""
        return (ahead + 1) * self.slot_s()

    def first_token_s(self) -> float:
        """What nine of ten streams need at most from their slot to their first token; 0 before that is known."""
        return _p90(self._first_s)


def retry_after_s(wait_s: float) -> int:
    """A `Retry-After` that clients obey: whole seconds, at least one and at most sixty."""
    low, high = RETRY_AFTER_S
    return min(high, max(low, math.ceil(wait_s)))


def _p90(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.9 * len(values)) - 1] if values else 0.0
