"""The places of a waiting room: how many requests may wait, with how much in hand, and how many of one caller."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rag_stack.errors import OverloadedError
from rag_stack.metrics import HELD, HELD_BYTES, HELD_REFUSED, Recorder


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests and bytes of bodies that wait together, and requests of one caller."""

    requests: int
    size_bytes: int
    requests_a_caller: int


class Places:
    """Who waits. Used from one event loop."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._callers: Counter[str] = Counter()
        self._taken = 0
        self._size_bytes = 0
        self._change()

    @property
    def taken_now(self) -> int:
        """Requests that wait."""
        return self._taken

    @contextmanager
    def taken(self, caller: str, limits: Limits, *, retry_after_s: int) -> Iterator["Place"]:
        """A place for one request, for as long as the block lasts. Raises OverloadedError where there is none."""
        if self._taken >= limits.requests:
            raise self._refused("requests", f"{limits.requests} requests wait for the engine already", retry_after_s)
        if self._callers[caller] >= limits.requests_a_caller:
            told = f"{limits.requests_a_caller} requests with this key wait for the engine already"
            raise self._refused("caller", told, retry_after_s)
        place = Place(self, limits, retry_after_s=retry_after_s)
        self._callers[caller] += 1
        self._change(requests=1)
        try:
            yield place
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]
            self._change(requests=-1, size_bytes=-place.size_bytes)

    def grow(self, size_bytes: int, limits: Limits, *, retry_after_s: int) -> None:
        """Count more of a body. Raises OverloadedError when it is too much for all of them together."""
        if self._size_bytes + size_bytes > limits.size_bytes:
            told = f"the requests that wait for the engine have {limits.size_bytes} bytes already"
            raise self._refused("bytes", told, retry_after_s)
        self._change(size_bytes=size_bytes)

    def _change(self, *, requests: int = 0, size_bytes: int = 0) -> None:
        self._taken += requests
        self._size_bytes += size_bytes
        self._recorder.record(HELD, self._taken)
        self._recorder.record(HELD_BYTES, self._size_bytes)

    def _refused(self, reason: str, told: str, retry_after_s: int) -> OverloadedError:
        self._recorder.record(HELD_REFUSED, 1, {"reason": reason})
        return OverloadedError(f"{told}; try again in {retry_after_s} s", retry_after_s=retry_after_s)


class Place:
    """One request's place."""

    def __init__(self, places: Places, limits: Limits, *, retry_after_s: int) -> None:
        self._places = places
        self._limits = limits
        self._retry_after_s = retry_after_s
        self.size_bytes = 0

    def add(self, size_bytes: int) -> None:
        """More of the body has come. Raises OverloadedError when it is too much."""
        self._places.grow(size_bytes, self._limits, retry_after_s=self._retry_after_s)
        self.size_bytes += size_bytes
