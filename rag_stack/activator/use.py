"""How much is under way here, and for how long nothing was."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Use:
    """Requests that would wake the service, from their first byte to the end of their answer. One event loop's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way = 0
        self._last_s = clock()
        self.arrived = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One request, for as long as the block lasts."""
        self._under_way += 1
        self.arrived += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._last_s = self._clock()

    @property
    def under_way(self) -> int:
        """Requests that are not answered to the end."""
        return self._under_way

    def idle_s(self) -> float:
        """Seconds since the last one ended, or since the start; 0 while one is under way."""
        return 0.0 if self._under_way else self._clock() - self._last_s
