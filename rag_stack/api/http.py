"""JSON bodies in, JSON and OpenAI-shaped errors out."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope

from rag_stack.errors import InvalidRequestError, PayloadTooLargeError, RagStackError, UnsupportedMediaTypeError


class ClientDisconnectedError(Exception):
    """The client closed the connection before its request was complete; nobody is left to answer."""


async def read_json(scope: Scope, receive: Receive, *, max_bytes: int) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises UnsupportedMediaTypeError, PayloadTooLargeError (before the whole body is read) or InvalidRequestError.
    """
    content_type = header(scope, b"content-type").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaTypeError(f"expected Content-Type application/json, got {content_type or 'none'}")
    try:
        body = json.loads(await _read(scope, receive, max_bytes=max_bytes))
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {type(body).__name__}")
    return body


async def _read(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > max_bytes:
        raise PayloadTooLargeError(f"the body has {declared} bytes; the limit is {max_bytes}")
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise PayloadTooLargeError(f"the body is over the limit of {max_bytes} bytes")
        more = message.get("more_body", False)
    return b"".join(chunks)


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
