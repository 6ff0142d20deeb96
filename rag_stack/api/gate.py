"""The outermost ASGI layer: request ids, keys, and OpenAI-shaped errors for whatever fails inside."""

import logging
import re
import uuid
from collections.abc import Collection, Sequence

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.api.auth import CALLER, KeyRing
from rag_stack.api.http import ClientDisconnectedError, error_response, header
from rag_stack.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RagStackError,
)
from rag_stack.metrics import REQUESTS, Recorder
from rag_stack.tracing.tracer import UNTRACED, Tracer

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Gate:
    """Lets a request in when its key is known, names it, and answers for what goes wrong behind the gate.

    `routes` is the whole allow-list: what stands in none of them is a 404. `lifespan` is the app whose start-up and
    shut-down events run, where that is another one than ours. `release` is what `x-rag-release` says on every answer,
    refusals too. With a `tracer` each request is a span, but for those of open paths.
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        *,
        keys: KeyRing,
        open_paths: Collection[str],
        recorder: Recorder,
        lifespan: ASGIApp | None = None,
        release: str = "",
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._router = Router(routes, redirect_slashes=False, default=_not_found)
        self._lifespan = lifespan or self._router
        self._keys = keys
        self._open_paths = frozenset(open_paths)
        self._recorder = recorder
        self._tracer = tracer
        self._named = [(b"x-rag-release", release.encode())] if release else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] != "http":  # no route of ours is a websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        request_id = _request_id(scope)
        scope = self._at_root(scope, request_id=request_id)
        exchange = _Exchange(send, request_id=request_id, named=self._named)
        if scope["path"] in self._open_paths:
            await self._answer(scope, receive, exchange)
            return
        with self._tracer.request(scope["method"], scope["headers"]) as span:
            try:
                await self._answer(scope, receive, exchange)
            finally:
                span.note(
                    {
                        "http.route": _route(scope),
                        "http.response.status_code": exchange.status,
                        "request_id": request_id,
                    }
                )

    async def _answer(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        try:
            if scope["path"] not in self._open_paths:
                scope[CALLER] = self._keys.check(header(scope, b"authorization"))
            await self._router(scope, receive, exchange.send)
        except ClientDisconnectedError:
            return
        except RagStackError as exc:
            await self._fail(scope, receive, exchange, exc)
        except HTTPException as exc:
            await self._fail(scope, receive, exchange, _translate(exc, scope))
        except Exception:
            _log.exception("request %s failed", exchange.request_id)
            await self._fail(scope, receive, exchange, RagStackError("the server failed; its log has the request id"))
        finally:
            self._recorder.record(REQUESTS, 1, {"route": _route(scope), "status": str(exchange.status)})

    def _at_root(self, scope: Scope, *, request_id: str) -> Scope:
        """The scope with the whole path in `path`: routes are written as clients see them, wherever we are mounted.

        `app` makes Starlette's router raise for a wrong method and not answer in plain text.
        """
        root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
        whole = path if path == root or path.startswith(root + "/") else root + path
        # The engine's log and ours then speak of the same request.
        headers = [(k, v) for k, v in scope["headers"] if k != b"x-request-id"]
        headers.append((b"x-request-id", request_id.encode()))
        return {**scope, "path": whole, "root_path": "", "app": self._router, "headers": headers}

    async def _fail(self, scope: Scope, receive: Receive, exchange: "_Exchange", error: RagStackError) -> None:
        if exchange.started:  # too late for a status: the closed connection is all that is left to say
            _log.error("request %s failed after its answer began: %s", exchange.request_id, error.message)
            raise error
        await error_response(error)(scope, receive, exchange.send)


class _Exchange:
    """One answer on its way out: knows whether it has begun, and puts the request id on it."""

    def __init__(self, send: Send, *, request_id: str, named: Sequence[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._named = named
        self.request_id = request_id
        self.started = False
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = [(k, v) for k, v in message.get("headers", []) if k.lower() != b"x-request-id"]
            message = {**message, "headers": [*headers, (b"x-request-id", self.request_id.encode()), *self._named]}
        await self._send(message)


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _route(scope: Scope) -> str:
    """The route's pattern where one matched, so that a label never holds what a client made up."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
    raise NotFoundError(f"no route {scope['method']} {scope['path']}")


def _translate(exc: HTTPException, scope: Scope) -> RagStackError:
    match exc.status_code:
        case 404:
            return NotFoundError(f"no route {scope['method']} {scope['path']}")
        case 405:
            return MethodNotAllowedError(f"{scope['path']} does not take {scope['method']}")
        case status if 400 <= status < 500:
            return InvalidRequestError(str(exc.detail))
        case _:
            return RagStackError(str(exc.detail))
