"""The boundary at which the openai client's exceptions become ours, once."""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import openai

from rag_stack import errors
from rag_stack.client.endpoint import API_KEY_VARIABLE, BASE_URL_VARIABLE, Endpoint
from rag_stack.errors import RagStackError

# A code says more than a status, and is all that an error frame in the middle of a stream has.
_BY_CODE: Mapping[str, type[RagStackError]] = {
    each.code: each
    for each in (
        errors.ContextLengthError,
        errors.AuthenticationError,
        errors.NotFoundError,
        errors.MethodNotAllowedError,
        errors.PayloadTooLargeError,
        errors.UnsupportedMediaTypeError,
        errors.OverloadedError,
        errors.UnavailableError,
        errors.EngineError,
    )
}


@contextmanager
def translated(endpoint: Endpoint, *, in_stream: bool = False) -> Iterator[None]:
    """Raise the openai client's and its transport's exceptions as those of rag_stack.errors; others pass."""
    try:
        yield
    except Exception as exc:
        ours = _translate(exc, endpoint, in_stream=in_stream)
        if ours is None:
            raise
        raise ours from exc


def _translate(exc: Exception, endpoint: Endpoint, *, in_stream: bool) -> RagStackError | None:
    match exc:
        case openai.APIStatusError():
            return _refused(exc, endpoint)
        case openai.APITimeoutError():
            return errors.UnavailableError(
                f"{endpoint.base_url} did not answer in time; a cold start takes minutes: try again or raise `timeout`"
            )
        case openai.APIConnectionError():
            return _unreachable(exc, endpoint, in_stream=in_stream)
        case openai.APIResponseValidationError():
            return errors.EngineError(f"{endpoint.base_url} answered something that is not the protocol: {exc.message}")
        case openai.APIError():  # an error frame in the middle of a stream
            return _kind_of(exc, default=errors.EngineError)(exc.message, param=exc.param)
        case json.JSONDecodeError() | UnicodeDecodeError():
            return errors.EngineError(f"{endpoint.base_url} answered something that is not JSON: {exc}")
        case _ if isinstance(exc, _transport_errors()):
            return _unreachable(exc, endpoint, in_stream=in_stream)
        case _:
            return None


def _transport_errors() -> tuple[type[Exception], ...]:
    """What openai 1.x and 2.x let out of a stream that breaks; 3.x translates it."""
    transport = sys.modules.get("httpx")
    return (transport.RequestError,) if transport is not None else ()


def _unreachable(exc: Exception, endpoint: Endpoint, *, in_stream: bool) -> RagStackError:
    cause = exc.__cause__ or exc
    if in_stream:
        return errors.UnavailableError(
            f"the connection to {endpoint.base_url} broke in the middle of an answer: {cause}"
        )
    return errors.UnavailableError(
        f"cannot reach {endpoint.base_url}: {cause}. Start a server with `rag-stack serve RELEASE.yaml`, or name "
        f"another one in base_url or {BASE_URL_VARIABLE}."
    )


def _refused(exc: openai.APIStatusError, endpoint: Endpoint) -> RagStackError:
    retry_after_s = _retry_after_s(exc)
    given = exc.body.get("message") if isinstance(exc.body, Mapping) else None
    if not isinstance(given, str):
        # Not our layer's words: a proxy's (HAProxy makes a text 500 of its own 502, 503 and 504), or another server's.
        if exc.status_code >= 500:
            said = " ".join(exc.response.text.split())[:200]
            message = f"{endpoint.base_url} has no replica that answers ({exc.status_code}: {said}); try again"
            return errors.UnavailableError(message, retry_after_s=retry_after_s)
        given = f"{exc.request.url} answered {exc.status_code}; is base_url {endpoint.base_url} right?"
    kind = _kind_of(exc, default=_by_status(exc.status_code))
    if exc.status_code == 401 and endpoint.api_key is None:
        given = f"{given} (none is set: give api_key, or {API_KEY_VARIABLE} in the environment)"
    if exc.status_code >= 500 and exc.request_id:
        given = f"{given} (request id {exc.request_id})"
    return kind(given, param=exc.param, retry_after_s=retry_after_s)


def _kind_of(exc: openai.APIError, *, default: type[RagStackError]) -> type[RagStackError]:
    code = exc.code or ""
    if code.isdigit() and not isinstance(exc, openai.APIStatusError):  # vLLM puts the status into the code
        return _by_status(int(code)) if int(code) != 500 else default
    return _BY_CODE.get(code, default)


def _by_status(status: int) -> type[RagStackError]:
    match status:
        case 401 | 403:
            return errors.AuthenticationError
        case 404:
            return errors.NotFoundError
        case 405:
            return errors.MethodNotAllowedError
        case 413:
            return errors.PayloadTooLargeError
        case 415:
            return errors.UnsupportedMediaTypeError
        case 429:
            return errors.OverloadedError
        case 502:
            return errors.EngineError
        case 503 | 504:
            return errors.UnavailableError
        case _ if 400 <= status < 500:
            return errors.InvalidRequestError
        case _:
            return RagStackError


def _retry_after_s(exc: openai.APIStatusError) -> int | None:
    try:
        seconds = float(exc.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return math.ceil(seconds) if math.isfinite(seconds) and seconds >= 0 else None
