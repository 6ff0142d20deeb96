"""Who may use the engine now, who waits, and who is told to come again: the one queue in front of a replica's engine.

As many sequences are let through as the engine generates side by side (`slots`). More would only wait inside it, in a
queue that is first come first served, knows no callers and no deadlines, and holds a prompt for each. Here one waits
before its search and before its prompt is built, in a line of its caller's own (fair_queue).

Refused with 429 and `Retry-After` are: what finds the queue full, unless its caller has less waiting than another,
whose newest is then refused in its place; and what cannot get its first token within the target with those ahead of
it, now or after it has waited for as long as that leaves. Who is let in therefore keeps the target, whatever the load.

What was held while no replica served, and came to the waiting room before this one did, is taken whatever its
deadline: it has waited already. A replica that starts beside others gets nothing of that kind, and keeps the target.

Every queue, pool and cache on the way of a request, and what happens beyond its bound: serving/bounds.py.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from starlette.types import Message, Receive, Send

from rag_stack.api.fair_queue import Ask, FairQueue
from rag_stack.api.http import while_connected
from rag_stack.api.pace import Pace, retry_after_s
from rag_stack.errors import OverloadedError, RagStackError
from rag_stack.metrics import ADMISSION_QUEUE, ADMISSION_REFUSED, ADMISSION_TOKENS, ADMISSION_WAIT_SECONDS, Recorder

Reason = Literal["full", "pushed out", "late", "engine"]
# Who came to the waiting room so long after a replica's first request was not held for its start. Nodes' clocks are
# less apart, and the room is told of a replica a moment after the replica serves. With a head whose clock is ahead by
# more, part of the crowd seems to come late and may get 429; with one that is behind by more, what comes so much later
# waits without a deadline too. Either ends by itself: what comes when the room knows the replica does not pass there.
_HELD_WITHIN_S: Final = 3.0
# The share of the target that may pass before the first token leaves here.
_MOST: Final = 0.75


@dataclass(frozen=True, slots=True)
class Limits:
    """What one replica takes on.

    `slots` sequences run, `queue` requests with `waiting_tokens` together wait, and beside them `held` of those that
    were held for its start, for `held_s` at most. `target_s` is the time to the first token that is aimed at. A client
    that does not say how long it waits hears something every `heartbeat_s`.
    """

    slots: int
    queue: int
    waiting_tokens: int
    target_s: float
    held: int = 0
    held_s: float = 0.0
    heartbeat_s: float = 10.0


@dataclass(frozen=True, slots=True)
class AdmissionSnapshot:
    """Now: `turns` have `running` of the `slots`; what waits; refusals so far; `slot_s` as in Pace."""

    turns: int
    running: int
    slots: int
    waiting: int
    waiting_tokens: int
    refused: int
    slot_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life, to be sent `every_s` while a request waits.

    It is also an answer's beginning, and nobody who has heard it can be refused with a status. Who may still be refused
    for coming too late hears it after `quiet_s` first, when its client will not wait much longer for anything.
    """

    send: Callable[[], Awaitable[None]]
    every_s: float
    quiet_s: float


class Turn:
    """A request's use of the engine."""

    def __init__(self, ask: Ask, *, pace: Pace, clock: Callable[[], float], waited_s: float | None = None) -> None:
        self.ask = ask
        self.arrived_s = clock()
        self.waited_s = waited_s
        self.began_s = 0.0
        self.queued = self.held = False
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.given_up: asyncio.Future[RagStackError] = loop.create_future()
        self._pace = pace
        self._clock = clock
        self._streams = self._first = False

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, unless the engine is given up meanwhile, which raises why."""
        task = asyncio.create_task(work)
        either: set[asyncio.Future[Any]] = {task, self.given_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self.given_up.result()
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def timed(self, send: Send) -> Send:
        """The engine's `send`, watched for a stream's first token."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._streams = any(
                    k == b"content-type" and b"event-stream" in v for k, v in message.get("headers", [])
                )
            elif self._streams and not self._first and is_content(message.get("body", b"")):
                self._first = True
                self._pace.began(self._clock() - self.began_s)
            await send(message)

        return watched


class Admission:
    """See the module. Used from one event loop alone."""

    def __init__(self, limits: Limits, *, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._slots = limits.slots
        self._recorder = recorder
        self._clock = clock
        self._queue: FairQueue[Turn] = FairQueue()
        self._running: dict[Turn, int] = {}
        self._refused = 0
        self._pace = Pace(slots=limits.slots)
        self._first_s = math.inf
        self._closed: RagStackError | None = None
        self.busy_since_s = clock()
        self._tell()

    @property
    def heartbeat_s(self) -> float:
        """A client that does not say how long it waits hears something this often."""
        return self._limits.heartbeat_s

    def set_slots(self, slots: int) -> None:
        """The engine that has started runs so many sequences; before any request."""
        self._slots, self._pace = slots, Pace(slots=slots)

    def snapshot(self) -> AdmissionSnapshot:
        """Now."""
        return AdmissionSnapshot(
            turns=len(self._running),
            running=self._taken(),
            slots=self._slots,
            waiting=len(self._queue),
            waiting_tokens=self._queue.tokens,
            refused=self._refused,
            slot_s=self._pace.slot_s(),
        )

    @asynccontextmanager
    async def turn(
        self,
        ask: Ask,
        receive: Receive,
        *,
        waited_s: float | None = None,
        while_waiting: Beat | None = None,
    ) -> AsyncIterator[Turn]:
        """Wait for a turn, and have it until the block ends. The body must have been read from `receive`.

        `waited_s` is how long ago the request came to the waiting room; none: it did not come by there. Raises
        OverloadedError with `retry_after_s`, ClientDisconnectedError when the client goes away first, or what the
        engine was given up with.
        """
        self._check_open()
        turn = Turn(ask, pace=self._pace, clock=self._clock, waited_s=waited_s)
        self._first_s = min(self._first_s, turn.arrived_s)
        try:
            if not self._queue and self._fits(ask):
                self._begin(turn)
            else:
                await while_connected(self._wait(turn, while_waiting), receive)
            yield turn
            self._pace.answered(self._clock() - turn.began_s)
        finally:
            self._queue.remove(turn)
            self._end(turn)
            self._tell()

    def give_up(self, error: RagStackError) -> None:
        """End all turns with an error, and refuse new ones: the engine gives no answers any more. Again does nothing.

        An engine that comes back after all is not used again: who gives it up has it replaced.
        """
        self._closed = self._closed or error
        for turn in self._running:
            if not turn.given_up.done():
                turn.given_up.set_result(error)
        for turn in self._queue.items():
            self._queue.remove(turn)
            self._refuse(turn, "engine", error)
        self._tell()

    async def _wait(self, turn: Turn, while_waiting: Beat | None) -> None:
        self._check_open()  # it may have been given up since the turn was asked for
        turn.queued = True
        turn.held = self._holds(turn)
        if turn.held:
            self._check_held(turn)
        else:
            self._check_deadline(turn)
            self._make_room(turn)
        self._queue.push(turn)
        self._tell()
        until_s = turn.arrived_s + (self._limits.held_s if turn.held else self._patience_s())
        await self._wait_until(turn, until_s, while_waiting)

    async def _wait_until(self, turn: Turn, until_s: float, beat: Beat | None) -> None:
        beat_at_s = math.inf if beat is None else turn.arrived_s + (beat.every_s if turn.held else beat.quiet_s)
        while not turn.ready.done():
            now_s = self._clock()
            if now_s >= until_s:
                self._queue.remove(turn)
                self._refuse(turn, "late", self._overloaded("was not reached", self._pace.wait_s(len(self._queue))))
                break
            if beat is not None and now_s >= beat_at_s:
                await beat.send()
                beat_at_s = now_s + beat.every_s
                continue
            await asyncio.wait({turn.ready}, timeout=min(until_s, beat_at_s) - now_s)
        turn.ready.result()

    def _check_deadline(self, turn: Turn) -> None:
        wait_s = self._pace.wait_s(self._queue.ahead(turn.ask.caller))
        if wait_s > self._patience_s():
            error = self._overloaded(f"would be reached in about {wait_s:.0f} s", wait_s)
            self._refuse(turn, "late", error)
            raise error

    def _patience_s(self) -> float:
        """How long one may wait and keep the target.

        Under a lasting overload nearly everybody waits for as long as that: a quarter of the target is kept back for
        what a wait is not, such as the way here. With an engine that misses the target also for who does not wait,
        nothing is won by waiting less.
        """
        first_s, most_s = self._pace.first_token_s(), _MOST * self._limits.target_s
        return most_s - (first_s if first_s < most_s else 0.0)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed.with_traceback(None)  # it is raised often, and would remember each time

    def _check_held(self, turn: Turn) -> None:
        """What was held is bounded by number alone: its bodies have been counted where it was held."""
        if sum(each.held for each in self._queue.items()) >= self._limits.held:
            raise self._full(turn)

    def _make_room(self, turn: Turn) -> None:
        """Refuse the newest of who has the most waiting until there is room; raises when that is the newcomer.

        What was held for a start takes no room from what comes later, and is never the one that goes.
        """
        while self._is_full(turn.ask):
            caller = self._queue.heaviest(turn.ask)
            victim = turn if caller == turn.ask.caller else self._queue.newest(caller)
            if victim is turn or victim.held:
                raise self._full(turn)
            self._queue.remove(victim)
            wait_s = self._pace.wait_s(len(self._queue))
            self._refuse(victim, "pushed out", self._overloaded("made room for another key's", wait_s))

    def _is_full(self, ask: Ask) -> bool:
        asks = [turn.ask for turn in self._queue.items() if not turn.held]
        tokens = sum(each.tokens for each in asks) + ask.tokens
        return len(asks) >= self._limits.queue or tokens > self._limits.waiting_tokens

    def _full(self, turn: Turn) -> OverloadedError:
        error = self._overloaded("found the queue full", self._pace.wait_s(len(self._queue)))
        self._refuse(turn, "full", error)
        return error

    def _holds(self, turn: Turn) -> bool:
        """Whether the turn is of those that were held for this replica's start, however long they take to come."""
        if turn.waited_s is None or self._limits.held_s <= 0:
            return False
        return turn.arrived_s - turn.waited_s - self._first_s <= _HELD_WITHIN_S

    def _begin(self, turn: Turn) -> None:
        turn.began_s = self._clock()
        if not self._running:
            self.busy_since_s = turn.began_s
        self._running[turn] = self._sequences(turn.ask)
        self._queue.serve(turn)
        self._recorder.record(ADMISSION_WAIT_SECONDS, turn.began_s - turn.arrived_s)
        if not turn.ready.done():
            turn.ready.set_result(None)

    def _end(self, turn: Turn) -> None:
        self._running.pop(turn, None)
        while (following := self._queue.peek()) is not None and self._fits(following.ask):
            self._begin(following)

    def _refuse(self, turn: Turn, reason: Reason, error: RagStackError) -> None:
        self._refused += 1
        self._recorder.record(ADMISSION_REFUSED, 1, {"reason": reason})
        if not turn.ready.done():
            turn.ready.set_exception(error)
            turn.ready.exception()  # somebody else may raise it

    def _overloaded(self, what: str, wait_s: float) -> OverloadedError:
        return OverloadedError(
            f"the server is overloaded: this request {what}; try again", retry_after_s=retry_after_s(wait_s)
        )

    def _fits(self, ask: Ask) -> bool:
        return self._taken() + self._sequences(ask) <= self._slots

    def _sequences(self, ask: Ask) -> int:
        return min(ask.sequences, self._slots)

    def _taken(self) -> int:
        return sum(self._running.values())

    def _tell(self) -> None:
        self._recorder.record(ADMISSION_QUEUE, len(self._queue))
        self._recorder.record(ADMISSION_TOKENS, self._queue.tokens)


def is_content(body: bytes) -> bool:
    """Whether a piece of an answer is more than a comment, or a space, that only says that the connection lives."""
    return bool(body) and not body.isspace() and not (body.startswith(b":") and body.count(b"\n\n") <= 1)
