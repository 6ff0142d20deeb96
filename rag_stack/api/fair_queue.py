"""A waiting line for each caller, served so that callers with work get equal shares of it: start-time fair queueing.

Work is counted in tokens. Each caller has a virtual time, which its served tokens move on; who is furthest behind is
next, and within a caller who came first. A caller that was away is not paid back for it. See Goyal, Vin and Cheng,
"Start-time fair queueing", SIGCOMM 1996.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants of the engine: `sequences` answers side by side, and about so many tokens altogether."""

    caller: str
    tokens: int
    sequences: int = 1


class HasAsk(Protocol):
    """What waits."""

    @property
    def ask(self) -> Ask: ...


T = TypeVar("T", bound=HasAsk)


@dataclass(slots=True)
class _Line(Generic[T]):
    waiting: deque[tuple[int, T]] = field(default_factory=deque)
    tokens: int = 0


class FairQueue(Generic[T]):
    """Not for several threads. As many callers are remembered as have ever asked: they are configured keys, or one."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._served: dict[str, int] = {}
        self._now = 0
        self._numbers = count()
        self._length = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self._length

    def push(self, item: T) -> None:
        """The last of its caller's line."""
        line = self._lines.setdefault(item.ask.caller, _Line())
        line.waiting.append((next(self._numbers), item))
        self._count(line, item, 1)

    def peek(self) -> T | None:
        """Who is next."""
        if not self._lines:
            return None
        caller = min(self._lines, key=lambda each: (self._start(each), self._lines[each].waiting[0][0]))
        return self._lines[caller].waiting[0][1]

    def serve(self, item: T) -> None:
        """Count the work of an item that is served now, and take it out of its line if it waits."""
        caller = item.ask.caller
        self._now = self._start(caller)
        self._served[caller] = self._now + item.ask.tokens
        self.remove(item)

    def remove(self, item: T) -> None:
        """Take an item out, wherever it stands; one that does not wait is no error."""
        line = self._lines.get(item.ask.caller)
        found = next((each for each in line.waiting if each[1] is item), None) if line else None
        if line is None or found is None:
            return
        line.waiting.remove(found)
        self._count(line, item, -1)
        if not line.waiting:
            del self._lines[item.ask.caller]

    def ahead(self, caller: str) -> int:
        """Sequences that will be served before one that `caller` asks for now, if nobody else comes."""
        own = self._lines.get(caller)
        start = self._start(caller) + (own.tokens if own else 0)
        found = 0
        for other, line in self._lines.items():
            at = self._start(other)
            for _, item in line.waiting:
                if other != caller and at > start:
                    break
                found += item.ask.sequences
                at += item.ask.tokens
        return found

    def heaviest(self, newcomer: Ask) -> str:
        """The caller with the most tokens waiting, were the newcomer among them."""
        weights = {caller: line.tokens for caller, line in self._lines.items()}
        weights[newcomer.caller] = weights.get(newcomer.caller, 0) + newcomer.tokens
        # Of two that are equal the newcomer's: nobody who waits is sent away for as much.
        return max(weights, key=lambda each: (weights[each], each == newcomer.caller))

    def newest(self, caller: str) -> T:
        """The last of a caller's line, which must not be empty."""
        return self._lines[caller].waiting[-1][1]

    def items(self) -> list[T]:
        """All that wait, in no order."""
        return [item for line in self._lines.values() for _, item in line.waiting]

    def _start(self, caller: str) -> int:
        return max(self._now, self._served.get(caller, 0))

    def _count(self, line: _Line[T], item: T, sign: int) -> None:
        line.tokens += sign * item.ask.tokens
        self.tokens += sign * item.ask.tokens
        self._length += sign
