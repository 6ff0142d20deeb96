"""What goes through a replica: answers under way, first tokens, failures. Counted once, read by all who decide.

Autoscaling, admission, release gates and the watch for a stuck engine read the same numbers.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.api.admission import Admission, is_content
from rag_stack.errors import OverloadedError
from rag_stack.metrics import ANSWERS, TTFT_SECONDS, Recorder

GENERATES: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
_KEPT: Final = 512
# What is told in the body of an answer that has its status: in a stream, and in any other.
_ERROR_FRAME: Final = b'data: {"error"'
_ERROR_BODY: Final = b'{"error"'
# In a message its quotes would be escaped.
_OVERLOADED: Final = f'"code":"{OverloadedError.code}"'.encode()


@dataclass(frozen=True, slots=True)
class TrafficSnapshot:
    """Requests that generate. `running` have sent a first byte, `waiting` have not; the rest counts since the start.

    `arrived` are all, those too that were refused.

    Of those that wait, `queued` wait for admission, with `queued_tokens`; the others are in the engine, of whose
    `slots` `busy` are taken (0 slots: not known). `refused` were answered 429, or told as much in the body.
    `progress_s` is when anything last came out of the engine, by the monotonic clock. `ttft_s` are the newest times to
    the first byte of a stream, oldest first, at most 512; `good` are those within the target.
    """

    running: int
    waiting: int
    answered: int
    failed: int
    aborted: int
    good: int
    chunks: int
    progress_s: float
    ttft_s: tuple[float, ...]
    arrived: int = 0
    queued: int = 0
    queued_tokens: int = 0
    busy: int = 0
    slots: int = 0
    refused: int = 0

    @property
    def under_way(self) -> int:
        """Requests that are not answered to the end."""
        return self.running + self.waiting


class Traffic:
    """Counts what passes. One a replica, used from its event loop alone."""

    def __init__(
        self,
        *,
        ttft_target_s: float,
        admission: Admission | None = None,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target_s = ttft_target_s
        self._admission = admission
        self._recorder = recorder
        self._clock = clock
        self._running = self._waiting = self._answered = self._failed = self._aborted = self._good = self._chunks = 0
        self._arrived = 0
        self._refused = self._blocked = 0
        self._progress_s = clock()
        self._ttft_s: deque[float] = deque(maxlen=_KEPT)
        # Called when an answer fails, at once: there may be no engine any more.
        self.on_failure: Callable[[], None] = lambda: None

    def snapshot(self) -> TrafficSnapshot:
        """Now."""
        queue = self._admission.snapshot() if self._admission else None
        return TrafficSnapshot(
            queued=queue.waiting if queue else 0,
            queued_tokens=queue.waiting_tokens if queue else 0,
            busy=queue.running if queue else 0,
            slots=queue.slots if queue else 0,
            refused=self._refused,
            running=self._running,
            waiting=self._waiting,
            answered=self._answered,
            failed=self._failed,
            aborted=self._aborted,
            good=self._good,
            chunks=self._chunks,
            progress_s=self._progress_s,
            ttft_s=tuple(self._ttft_s),
            arrived=self._arrived,
        )

    def silent_s(self) -> float:
        """Seconds for which nothing has come out of the engine though it was given work; 0 while it has none."""
        if self._admission is None:
            under_way, since_s = self._running + self._waiting, self._progress_s
        else:  # a body that comes slowly, or a place in the queue, is no work yet
            under_way = self._admission.snapshot().turns
            since_s = max(self._progress_s, self._admission.busy_since_s)
        return self._clock() - since_s if under_way > self._blocked else 0.0

    def progressed(self) -> None:
        """The engine is known to have made something of its work, though nothing has come out."""
        self._progress_s = self._clock()

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app, counted. Goes outside everything, so that what a client waits for is what is counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in GENERATES:
                await app(scope, receive, send)
                return
            await self._count(app, scope, receive, send)

        return counted

    async def _count(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        passage = _Passage(began_s=self._clock())
        if not self._running + self._waiting:
            self._progress_s = passage.began_s
        self._waiting += 1
        self._arrived += 1

        async def send_counted(message: Message) -> None:
            # A client that does not read holds up its own answer, and not the engine.
            self._blocked += 1
            try:
                await send(message)
            finally:
                self._blocked -= 1
            self._see(message, passage)

        try:
            await app(scope, receive, send_counted)
        finally:
            if passage.streams:
                self._running -= 1
            else:
                self._waiting -= 1
            self._end(passage)

    def _see(self, message: Message, passage: "_Passage") -> None:
        if message["type"] == "http.response.start":
            passage.status = message["status"]
            if passage.status >= 500:
                self.on_failure()
            passage.events = any(
                b"text/event-stream" in v for k, v in message.get("headers", []) if k == b"content-type"
            )
            return
        body = message.get("body", b"")
        if passage.status == 200 and is_content(body):
            if body.startswith(_ERROR_FRAME if passage.events else _ERROR_BODY):
                # A refusal after a wait, say: it does not come out of the engine.
                passage.broken, passage.refused = True, _OVERLOADED in body
                if not passage.refused:
                    self.on_failure()
            else:
                self._progress_s = self._clock()
                self._chunks += 1
            if passage.events and not passage.streams:
                passage.streams = True
                self._waiting -= 1
                self._running += 1
                passage.ttft_s = self._clock() - passage.began_s
                if self._recorder is not None:
                    self._recorder.record(TTFT_SECONDS, passage.ttft_s)
        passage.complete |= not message.get("more_body", False)

    def _end(self, passage: "_Passage") -> None:
        if passage.status == 429 or passage.refused:
            self._refused += 1
            self._tell("refused")
        elif passage.status >= 500 or passage.broken:
            self._failed += 1
            self._tell("failed")
        elif not passage.complete:
            self._aborted += 1
            self._tell("aborted")
        elif passage.status == 200:
            self._answered += 1
            took_s = passage.ttft_s if passage.events else self._clock() - passage.began_s
            good = took_s <= self._target_s
            self._good += good
            self._tell("good" if good else "late")
            if passage.events:
                self._ttft_s.append(took_s)

    def _tell(self, outcome: str) -> None:
        if self._recorder is not None:
            self._recorder.record(ANSWERS, 1, {"outcome": outcome})


@dataclass(slots=True)
class _Passage:
    """One request on its way through."""

    began_s: float
    status: int = 0
    events: bool = False
    streams: bool = False
    broken: bool = False
    refused: bool = False
    complete: bool = False
    ttft_s: float = field(default=0.0)
