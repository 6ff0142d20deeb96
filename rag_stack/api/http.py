"""JSON bodies in, JSON and OpenAI-shaped errors out."""

import asyncio
import json
import math
import re
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from rag_stack.errors import InvalidRequestError, PayloadTooLargeError, RagStackError, UnsupportedMediaTypeError

T = TypeVar("T")

# The engine reads the body again with less of the stack left: what we can read must not be too deep for it.
_MAX_DEPTH = 256
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class ClientDisconnectedError(Exception):
    """The client closed the connection before its request was complete; nobody is left to answer."""


async def read_json(scope: Scope, receive: Receive, *, max_bytes: int) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises UnsupportedMediaTypeError, PayloadTooLargeError (before the whole body is read) or InvalidRequestError.
    """
    content_type = header(scope, b"content-type").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaTypeError(f"expected Content-Type application/json, got {content_type or 'none'}")
    encoding = header(scope, b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"expected a body without Content-Encoding, got {encoding}")
    data = await _read(scope, receive, max_bytes=max_bytes)
    try:
        body = _parse(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {type(body).__name__}")
    return body


def _parse(text: str) -> object:
    """Python reads more than JSON allows: NaN, infinities and halves of surrogate pairs could not be passed on."""
    body = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    if text.count("[") + text.count("{") > _MAX_DEPTH and _is_deeper(body, _MAX_DEPTH):
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
    if _HALF_A_PAIR.search(text):
        try:
            dumps(body)
        except UnicodeEncodeError as exc:
            raise ValueError("a string holds half a surrogate pair") from exc
    return body


def _is_deeper(body: object, depth: int) -> bool:
    level = [body] if isinstance(body, dict | list) else []
    for _ in range(depth):
        inner = (value for each in level for value in (each.values() if isinstance(each, dict) else each))
        level = [value for value in inner if isinstance(value, dict | list)]
    return bool(level)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is out of range")
    return value


async def _read(scope: Scope, receive: Receive, *, max_bytes: int) -> bytearray:
    declared = header(scope, b"content-length")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        raise PayloadTooLargeError(f"the body has {declared[:32]} bytes; the limit is {max_bytes}")
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise PayloadTooLargeError(f"the body is over the limit of {max_bytes} bytes")
        more = message.get("more_body", False)
    return body


async def while_connected(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client goes away first: then ClientDisconnectedError.

    Only for a request whose body has been read: what `receive` gives until then would be lost.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnectedError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def header(scope: Scope, name: bytes) -> str:
    """A request header's value, empty when absent."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def error_body(error: RagStackError) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_response(error: RagStackError) -> JSONResponse:
    """The response for an expected failure."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


def dumps(body: Mapping[str, Any]) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def named(scope: Scope, send: Send) -> tuple[Scope, Send]:
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
