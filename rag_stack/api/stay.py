"""One request that waits for its answer: kept company, refused when waiting cannot help, gone with its client."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope

from rag_stack.api.held_answer import HeldAnswer, beat_s
from rag_stack.api.http import ClientDisconnectedError
from rag_stack.api.outlook import MAX_RETRY_AFTER_S, Look, Outlook
from rag_stack.errors import RagStackError, UnavailableError

# Of what a client waits for, the part after which a refusal goes out: the second beat of three.
_PATIENT_FOR: Final = 0.6
# What is told at a beat was asked for so long before: it may be as old as the last question.
_LOOK_AHEAD_S: Final = 1.0
# The app hears first that its client has gone, and ends by itself.
_LEAVE_S: Final = 2.0
_log = logging.getLogger(__name__)


class Stay:
    """One request in the room, until it is answered, refused or its client has gone."""

    def __init__(self, inbox: "Inbox", held: HeldAnswer, *, look: Look, patience_s: float | None) -> None:
        self._inbox = inbox
        self._held = held
        self._look = look
        self._patience_s = patience_s
        self._clock = asyncio.get_running_loop().time
        self._began_s = self._clock()

    async def last(self, app: ASGIApp, scope: Scope, outlook: Outlook) -> None:
        """Returns when nothing of the request is left, in the app neither. Raises ClientDisconnectedError."""
        answer: asyncio.Task[None] = asyncio.ensure_future(_run(app, scope, self._inbox, self._held))
        gone = asyncio.create_task(self._inbox.listen())
        begun = asyncio.create_task(self._held.begun.wait())
        try:
            every_s = beat_s(scope, outlook.rules.heartbeat_s)
            await self._accompany(answer, gone, begun, outlook, every_s=every_s)
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
            elif not self._held.complete:  # after the end of an answer every client counts as gone
                raise ClientDisconnectedError
        except RagStackError as exc:
            await self._end(answer)  # first, so that nothing of the app's comes after the last word
            await self._held.fail(exc)
        finally:
            await self._end(answer)
            gone.cancel()
            begun.cancel()
            await asyncio.gather(gone, begun, return_exceptions=True)

    async def _accompany(
        self,
        answer: asyncio.Task[None],
        gone: asyncio.Task[None],
        begun: asyncio.Task[bool],
        outlook: Outlook,
        *,
        every_s: float,
    ) -> None:
        """Until the answer begins or the app ends. Raises ClientDisconnectedError and UnavailableError."""
        beat_at_s = self._began_s + every_s
        while True:
            at_s = min(beat_at_s, self._began_s + outlook.rules.hold_s)
            for until_s in (at_s - _LOOK_AHEAD_S, at_s):
                wait_s = max(0.0, until_s - self._clock())
                done, _ = await asyncio.wait({answer, gone, begun}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if answer in done or begun in done:
                    return
                if gone in done:
                    raise ClientDisconnectedError
                with contextlib.suppress(UnavailableError):  # then what was known last
                    outlook = await self._look()
            await self._comfort(outlook)
            beat_at_s += every_s

    async def _comfort(self, outlook: Outlook) -> None:
        """A sign of life, or the refusal of whom waiting cannot help."""
        waited_s = self._clock() - self._began_s
        if waited_s >= outlook.rules.hold_s:
            told = f"the engine did not answer within {outlook.rules.hold_s:.0f} s"
            raise UnavailableError(told, retry_after_s=outlook.retry_after_s())
        if outlook.state == "failed":
            raise UnavailableError(outlook.why, retry_after_s=MAX_RETRY_AFTER_S)
        # Also while one start has failed and the next has not begun: whoever has its status is kept.
        if self._held.streams or self._held.opened or outlook.state != "asleep":
            await self._held.beat()
        elif self._patience_s is not None and waited_s >= self._patience_s * _PATIENT_FOR:
            raise UnavailableError("nothing serves yet", retry_after_s=outlook.retry_after_s())

    async def _end(self, answer: asyncio.Task[None]) -> None:
        """Have the app end: it hears that the client has gone, and is cancelled where that does not help."""
        self._inbox.leave()
        await asyncio.wait({answer}, timeout=_LEAVE_S)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


class Inbox:
    """What the client sends: its body, read once and given to the app again, and then that it goes.

    `left` is set once the app is to end.
    """

    def __init__(self, receive: Receive, *, took: Callable[[int], None]) -> None:
        self._receive = receive
        self._took = took
        self._messages: list[Message] = []
        self.left = asyncio.Event()

    async def record(self) -> Message:
        """The client's next message, which the app will get too."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._took(len(message.get("body", b"")))
            self._messages.append(message)
        return message

    async def listen(self) -> None:
        """Returns when the client has gone. After its body alone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def leave(self) -> None:
        """Tell the app that its client has gone."""
        self.left.set()

    async def __call__(self) -> Message:
        """The app's `receive`."""
        if self._messages:
            return self._messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}


async def _run(app: ASGIApp, scope: Scope, inbox: Inbox, held: HeldAnswer) -> None:
    """The app's answer, whole. Raises UnavailableError when it breaks off or does not come."""
    try:
        await app(scope, inbox, held)
    except (ClientDisconnectedError, UnavailableError):
        raise
    except Exception as exc:
        _log.exception("a request failed behind the waiting room")
        raise UnavailableError("the engine failed before its answer was complete", retry_after_s=1) from exc
    if not held.complete:
        raise UnavailableError("the engine went away before its answer was complete", retry_after_s=1)
