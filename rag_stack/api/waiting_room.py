"""Where requests wait while nothing serves: around the app that a request reaches when no replica is known.

A POST that the engine answers is passed on at once, which is what wakes the engine, and its client is kept company
until the answer begins: a stream hears SSE comments, another answer begins with spaces, which JSON allows. Whoever
hears something has its status: 200. What fails after that says so in the body, a stream by an error frame and
`[DONE]`, other answers by an OpenAI error object in the place of the answer. What is answered sooner, or fails sooner,
has its own status.

Nobody wakes the engine by mistake: keys, routes, models and bodies are checked here as behind it, and a GET is answered
here. Whoever goes away takes its request along.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api.auth import KeyRing
from rag_stack.api.held_answer import HeldAnswer, read_timeout_s
from rag_stack.api.http import ClientDisconnectedError, error_response, header, named, read_json
from rag_stack.api.outlook import Look, Outlook
from rag_stack.api.places import Places
from rag_stack.api.stay import Inbox, Stay
from rag_stack.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RagStackError,
    UnavailableError,
)

# What the engine answers to a POST, and to a GET.
CHATS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
POSTS: Final = CHATS | {"/v1/responses", "/tokenize", "/detokenize"}
GETS: Final = frozenset({"/version"})
# When a request came here, by `time.time`: a key of the scope, which goes to the replica with it. A header could come
# from a client.
HELD_SINCE: Final = "rag_stack.held_since"


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
        scope, send = named({**scope, HELD_SINCE: time.time()}, send)
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
            inbox = Inbox(receive, took=place.add)
            body = await read_json(scope, inbox.record, max_bytes=rules.max_body_bytes)
            _check_body(scope["path"], body, rules.models)
            held = HeldAnswer(send, streams=body.get("stream") is True)
            del body  # what is counted is the body as it came; parsed it is several times as large
            stay = Stay(inbox, held, look=self._look, patience_s=read_timeout_s(scope))
            await stay.last(self._app, scope, outlook)


def held_for_s(scope: Scope, *, now_s: float) -> float | None:
    """How long before `now_s`, by `time.time`, a request came to the waiting room; None: it did not come by there."""
    since_s = scope.get(HELD_SINCE)
    return None if since_s is None else max(0.0, now_s - since_s)


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
