"""Where clients come in: their requests are passed on, held until the service has woken, or answered here.

While the service serves everything is passed on as it is. While it does not:

* A POST, PUT, PATCH or DELETE of a route that the service has, with a key that may, wakes it and is held: its client
  hears an SSE comment or a space at every heartbeat, and has status 200 from then on (api/stay.py). One whose body is
  too large to hold wakes it too, and is told by 503 when to come again.
* Nothing else wakes it: no GET, so no probe, no scraper and no list of models; no unknown route, and no unknown key.
  `GET /health` is answered 200, so that a load balancer goes on sending requests; any other GET 503 with a Retry-After.

What does not wake it does not keep it awake either.
"""

import asyncio
import json
import re
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.activator.keys import Keys
from rag_stack.activator.measure import REQUESTS
from rag_stack.activator.presence import Presence
from rag_stack.activator.ray_service import Phase
from rag_stack.activator.upstream import Upstream, has_body
from rag_stack.activator.use import Use
from rag_stack.activator.wake import Wake
from rag_stack.activator.watch import Watch
from rag_stack.api import sse
from rag_stack.api.held_answer import HeldAnswer, read_timeout_s
from rag_stack.api.http import ClientDisconnectedError, error_body, error_response, header, named
from rag_stack.api.outlook import Outlook
from rag_stack.api.pace import retry_after_s
from rag_stack.api.places import Places
from rag_stack.api.stay import Inbox, Stay
from rag_stack.api.waiting_room import POSTS
from rag_stack.errors import NotFoundError, NotReachedError, RagStackError, UnavailableError
from rag_stack.metrics import Recorder

# What the service has beside the engine's own routes.
PREFIXES: Final = ("/admin", "/v1/files", "/v1/vector_stores")
_CHANGES: Final = frozenset({"DELETE", "PATCH", "POST", "PUT"})
# Between two tries while the Service of one that is Ready does not answer yet.
_AGAIN_S: Final = 0.5
# Where nothing is known, asking is the only way to know whether somebody is there.
_TRIED: Final = (Phase.SERVING, Phase.UNKNOWN)
# A larger body is not parsed: that takes many times its size, and the loop is everybody's.
_PARSED_BYTES: Final = 1024 * 1024
_ASKS_FOR_A_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
# Who waits has it woken again, should somebody have suspended it meanwhile.
_ASKED_AGAIN_S: Final = 5.0
_DONE: Final = b"data: " + sse.DONE + b"\n\n"


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that know of the service behind the door."""

    watch: Watch
    wake: Wake
    presence: Presence
    upstream: Upstream


class Door:
    """The ASGI app on the clients' port. Used from one event loop."""

    def __init__(self, service: Service, *, use: Use, keys: Keys, places: Places, recorder: Recorder) -> None:
        self._service, self._use, self._keys, self._places = service, use, keys, places
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        scope, send = named(scope, send)
        answer = _Answer(send)
        try:
            refusal = self._refusal(scope)
            if refusal is None:
                with self._use.one():
                    await self._service.presence.stir()
                    await self._change(scope, receive, answer)
            else:
                await self._other(scope, receive, answer, refusal)
        except ClientDisconnectedError:
            return
        except RagStackError as exc:
            self._count("refused")
            await answer.fail(exc, scope, receive)

    def _refusal(self, scope: Scope) -> RagStackError | None:
        """Why it does not wake the service; None: it does."""
        method, path = scope["method"], scope["path"]
        if method not in _CHANGES:
            told = f"the service is {self._service.watch.phase.value}, and a {method} does not wake it"
            return UnavailableError(told, retry_after_s=retry_after_s(self._service.wake.estimate_s()))
        try:
            _check_route(method, path)
            self._keys.check(path, header(scope, b"authorization"))
        except RagStackError as exc:
            return exc
        return None

    async def _change(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What wakes."""
        if self._service.watch.phase in _TRIED:
            try:
                await self._service.upstream(scope, receive, send)
            except NotReachedError:
                pass  # nothing of it has been sent, so it can wait
            else:
                self._count("passed")
                return
        await self._hold(scope, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send, refusal: RagStackError) -> None:
        """What does not: the service says what it thinks of it, if it is there."""
        phase = self._service.watch.phase
        if phase in _TRIED:
            await self._service.upstream(scope, receive, send)
            self._count("passed")
        elif scope["path"] == "/health" and scope["method"] in ("GET", "HEAD"):
            self._count("answered")
            await JSONResponse({"status": "ok", "service": phase.value})(scope, receive, send)
        else:
            raise refusal

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        wake, caller = self._service.wake, header(scope, b"authorization")
        outlook = await wake.look()
        with self._places.taken(caller, outlook.rules.limits, retry_after_s=outlook.retry_after_s()) as place:
            inbox = Inbox(receive, took=place.add)
            streams = await self._read_body(scope, inbox, outlook)
            wake.ask()
            outlook = await wake.look()
            if outlook.state == "failed":
                raise UnavailableError(outlook.why, retry_after_s=outlook.retry_after_s())
            stay = Stay(inbox, HeldAnswer(send, streams=streams), look=wake.look, patience_s=read_timeout_s(scope))
            await stay.last(self._when_awake(inbox), scope, outlook)
            self._count("held")

    async def _read_body(self, scope: Scope, inbox: Inbox, outlook: Outlook) -> bool:
        """Whether the answer is to be a stream. Raises UnavailableError for more than one request may leave here."""
        parts: list[bytes] = []
        size_bytes, limit_bytes, more = 0, outlook.rules.max_body_bytes, has_body(scope)
        while more:
            message = await inbox.record()
            if message["type"] == "http.disconnect":
                raise ClientDisconnectedError
            parts.append(message.get("body", b""))
            size_bytes += len(parts[-1])
            if size_bytes > limit_bytes:
                self._service.wake.ask()
                told = (
                    f"the service wakes, and a body of more than {limit_bytes} bytes cannot wait for it; send it again"
                )
                raise UnavailableError(told, retry_after_s=outlook.retry_after_s())
            more = message.get("more_body", False)
        return _streams(scope, b"".join(parts))

    def _when_awake(self, inbox: Inbox) -> ASGIApp:
        """The app behind a held request: the service, as soon as it is there."""
        watch, wake, upstream = self._service.watch, self._service.wake, self._service.upstream

        async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
            while not inbox.left.is_set():
                wake.ask()
                if watch.phase not in _TRIED:
                    await _either(watch.change_within(_ASKED_AGAIN_S), inbox.left.wait())
                if watch.phase in _TRIED:
                    try:
                        await upstream(scope, receive, send)
                    except NotReachedError:
                        await _either(watch.change_within(_AGAIN_S), inbox.left.wait())
                    else:
                        return

        return pass_on

    def _count(self, outcome: str) -> None:
        self._recorder.record(REQUESTS, 1, {"outcome": outcome})


class _Answer:
    """A `send` that knows how far an answer is, to end one that cannot be completed as its client can tell."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        self._events = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            types = [value for key, value in message.get("headers", []) if key.lower() == b"content-type"]
            self._events = bool(types) and b"event-stream" in types[0]
        await self._send(message)

    async def fail(self, error: RagStackError, scope: Scope, receive: Receive) -> None:
        """An error frame in a stream; any other answer breaks off, which is what tells that it is not complete."""
        if not self._started:
            await error_response(error)(scope, receive, self._send)
        elif self._events:
            last = sse.encode(error_body(error)) + _DONE
            await self._send({"type": "http.response.body", "body": last, "more_body": False})


async def _either(one: Coroutine[Any, Any, object], other: Coroutine[Any, Any, object]) -> None:
    """Until one of the two is over; the other is ended."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_route(method: str, path: str) -> None:
    below = any(path == prefix or path.startswith(f"{prefix}/") for prefix in PREFIXES)
    if not below and not (method == "POST" and path in POSTS):
        raise NotFoundError(f"no route {method} {path}")


def _streams(scope: Scope, body: bytes) -> bool:
    """Whether it asks for a stream. What is not understood here the service refuses."""
    if not header(scope, b"content-type").lower().startswith("application/json"):
        return False
    if len(body) > _PARSED_BYTES:
        return _ASKS_FOR_A_STREAM.search(body) is not None
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("stream") is True
