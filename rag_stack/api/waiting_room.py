"""Where requests wait while nothing serves: around the app that a request reaches when no replica is known.

A POST that the engine answers is passed on at once, which is what wakes the engine, and its client is kept company
until the answer begins: a stream hears SSE comments, another answer begins with spaces, which JSON allows. Whoever
hears something has its status: 200. What fails after that says so in the body, a stream by an error frame and
`[DONE]`, other answers by an OpenAI error object in the place of the answer. What is answered sooner, or fails sooner,
has its own status.

Nobody wakes the engine by mistake: keys, routes, models and bodies are checked here as behind it, and a GET is answered
here. Whoever goes away takes its request along.
"""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.api.auth import KeyRing
from rag_stack.api.held_answer import HeldAnswer, beat_s, read_timeout_s
from rag_stack.api.http import ClientDisconnectedError, error_response, header, read_json
from rag_stack.api.places import Limits, Places
from rag_stack.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RagStackError,
    UnavailableError,
)

EngineState: TypeAlias = Literal["asleep", "starting", "ready", "failed"]
Look: TypeAlias = Callable[[], Awaitable["Outlook"]]

# What the engine answers to a POST, and to a GET.
CHATS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
POSTS: Final = CHATS | {"/v1/responses", "/tokenize", "/detokenize"}
GETS: Final = frozenset({"/version"})
# When a request came here, by `time.time`: a key of the scope, which goes to the replica with it. A header could come
# from a client.
HELD_SINCE: Final = "rag_stack.held_since"
_MAX_RETRY_AFTER_S: Final = 60
# Of what a client waits for, the part after which a refusal goes out: the second beat of three.
_PATIENT_FOR: Final = 0.6
# What is told at a beat was asked for so long before: it may be as old as the last question.
_LOOK_AHEAD_S: Final = 1.0
# The app hears first that its client has gone, and ends by itself.
_LEAVE_S: Final = 2.0
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the room needs of a release."""

    models: tuple[str, ...]
    api_key_sha256: tuple[str, ...]
    max_body_bytes: int
    limits: Limits
    hold_s: float
    heartbeat_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of the engine now, and in how many seconds it will serve if it is asked to."""

    rules: Rules
    state: EngineState
    estimate_s: float

    def retry_after_s(self) -> int:
        """For a Retry-After: what remains of the start, from 1 s to what every client accepts."""
        return max(1, min(_MAX_RETRY_AFTER_S, int(self.estimate_s) + 1))


class WaitingRoom:
    """The app behind it, whose answers may be long in coming. Used from one event loop.

    What is below one of the prefixes `others` is another application's, and passes. `look` gives the newest outlook
    without waiting long; it raises UnavailableError while nothing is known.
    """

    def __init__(self, app: ASGIApp, *, others: Sequence[str], look: Look, places: Places) -> None:
        self._app = app
        self._others = ("/-", *others)  # Serve's own routes say how Serve is
        self._look = look
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan" or _is_below(scope["path"], self._others):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        scope, send = _named({**scope, HELD_SINCE: time.time()}, send)
        try:
            await self._hold(scope, receive, send, await self._look())
        except ClientDisconnectedError:
            return
        except RagStackError as exc:
            await error_response(exc)(scope, receive, send)

    async def _hold(self, scope: Scope, receive: Receive, send: Send, outlook: Outlook) -> None:
        rules, caller = outlook.rules, header(scope, b"authorization")
        KeyRing(rules.api_key_sha256).check(caller)
        _check_route(scope, outlook)
        with self._places.taken(caller, rules.limits, retry_after_s=outlook.retry_after_s()) as place:
            inbox = _Inbox(receive, took=place.add)
            body = await read_json(scope, inbox.record, max_bytes=rules.max_body_bytes)
            _check_body(scope["path"], body, rules.models)
            held = HeldAnswer(send, streams=body.get("stream") is True)
            del body  # what is counted is the body as it came; parsed it is several times as large
            stay = _Stay(inbox, held, look=self._look, patience_s=read_timeout_s(scope))
            await stay.last(self._app, scope, outlook)


def held_for_s(scope: Scope, *, now_s: float) -> float | None:
    """How long before `now_s`, by `time.time`, a request came to the waiting room; None: it did not come by there."""
    since_s = scope.get(HELD_SINCE)
    return None if since_s is None else max(0.0, now_s - since_s)


class _Stay:
    """One request in the room, until it is answered, refused or its client has gone."""

    def __init__(self, inbox: "_Inbox", held: HeldAnswer, *, look: Look, patience_s: float | None) -> None:
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
            if not answer.done():
                raise ClientDisconnectedError
            answer.result()
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
            raise UnavailableError("the engine does not start", retry_after_s=_MAX_RETRY_AFTER_S)
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


class _Inbox:
    """What the client sends: its body, read once and given to the app again, and then that it goes."""

    def __init__(self, receive: Receive, *, took: Callable[[int], None]) -> None:
        self._receive = receive
        self._took = took
        self._messages: list[Message] = []
        self._left = asyncio.Event()

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
        self._left.set()

    async def __call__(self) -> Message:
        """The app's `receive`."""
        if self._messages:
            return self._messages.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}


async def _run(app: ASGIApp, scope: Scope, inbox: _Inbox, held: HeldAnswer) -> None:
    """The app's answer, whole. Raises UnavailableError when it breaks off or does not come."""
    try:
        await app(scope, inbox, held)
    except Exception as exc:
        _log.exception("a request failed behind the waiting room")
        raise UnavailableError("the engine failed before its answer was complete", retry_after_s=1) from exc
    if not held.complete:
        raise UnavailableError("the engine went away before its answer was complete", retry_after_s=1)


def _check_route(scope: Scope, outlook: Outlook) -> None:
    method, path = scope["method"], scope["path"]
    if path not in POSTS and path not in GETS:
        raise NotFoundError(f"no route {method} {path}")
    if method != ("POST" if path in POSTS else "GET"):
        raise MethodNotAllowedError(f"{path} does not take {method}")
    if path in GETS:
        told = f"the engine is {outlook.state}, and a GET does not wake it"
        raise UnavailableError(told, retry_after_s=outlook.retry_after_s())


def _check_body(path: str, body: dict[str, Any], models: Sequence[str]) -> None:
    """What the layer behind would refuse and is cheap to see. Raises InvalidRequestError or NotFoundError."""
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidRequestError(f"`stream` must be true or false, got {body['stream']!r:.50}", param="stream")
    model = body.get("model")
    if path in CHATS and (not isinstance(model, str) or not model):
        raise InvalidRequestError(f"`model` must name a model; this server has {list(models)}", param="model")
    # Of `model@store` the store may have been made a moment ago: the layer knows.
    if isinstance(model, str) and model not in models and model.rpartition("@")[0] not in models:
        raise NotFoundError(f"the model {model!r} does not exist; this server has {list(models)}", param="model")


def _is_below(path: str, prefixes: Sequence[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


def _named(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """The request with a name that the app behind sees too, and that every answer carries."""
    given = header(scope, b"x-request-id")
    name = (given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}").encode()
    headers = [(key, value) for key, value in scope["headers"] if key != b"x-request-id"]

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            told = message.get("headers", [])
            if not any(key.lower() == b"x-request-id" for key, _ in told):
                message = {**message, "headers": [*told, (b"x-request-id", name)]}
        await send(message)

    return {**scope, "headers": [*headers, (b"x-request-id", name)]}, send_named
