"""Which server a client talks to, and as whom."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from rag_stack.errors import InvalidRequestError

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
BASE_URL_VARIABLE = "RAG_STACK_BASE_URL"
API_KEY_VARIABLE = "RAG_STACK_API_KEY"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, with the path of its API, and the key for it."""

    base_url: str
    api_key: str | None


def resolve_endpoint(base_url: str | None, *, api_key: str | None) -> Endpoint:
    """Argument, environment, default, in this order. An address without a path gets `/v1`.

    Raises InvalidRequestError when the address is not an http(s) URL or the key cannot be sent.
    """
    given = base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
    try:
        parts = urlsplit(given)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an unclosed [
        valid = False
    if not valid:
        raise InvalidRequestError(f"base_url must look like {DEFAULT_BASE_URL}, got {given!r}", param="base_url")
    path = parts.path.rstrip("/") or "/v1"
    key = (api_key or os.environ.get(API_KEY_VARIABLE) or "").strip()
    if not key.isascii() or not key.isprintable():
        raise InvalidRequestError("an API key is one line of ASCII; the given one is not", param="api_key")
    return Endpoint(base_url=urlunsplit((parts.scheme, parts.netloc, path, "", "")), api_key=key or None)
