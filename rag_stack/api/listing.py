"""Lists as OpenAI's API gives them: a page of what comes after or before a cursor, newest first unless asked."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse

from rag_stack.errors import InvalidRequestError
from rag_stack.protocol import Wire

T = TypeVar("T")


def listing(
    items: Sequence[T],
    request: Request,
    *,
    id_of: Callable[[T], str],
    to_wire: Callable[[T], Wire],
    default_limit: int = 20,
    max_limit: int = 100,
) -> JSONResponse:
    """The page of `items` (oldest first) that a request asks for. Raises InvalidRequestError."""
    limit = _limit(request, default=default_limit, most=max_limit)
    ordered = list(items) if _order(request) == "asc" else list(reversed(items))
    if (before := request.query_params.get("before")) is not None:
        ordered = ordered[: next((n for n, each in enumerate(ordered) if id_of(each) == before), 0)]
        # The page that ends where the other one begins.
        return _page(ordered[-limit:], id_of, to_wire, has_more=len(ordered) > limit)
    if (after := request.query_params.get("after")) is not None:
        ordered = ordered[next((n + 1 for n, each in enumerate(ordered) if id_of(each) == after), len(ordered)) :]
    return _page(ordered[:limit], id_of, to_wire, has_more=len(ordered) > limit)


def choice(request: Request, name: str, known: Sequence[str]) -> str | None:
    """A query parameter that is one of `known`, or None. Raises InvalidRequestError."""
    given = request.query_params.get(name)
    if given is not None and given not in known:
        raise InvalidRequestError(f"`{name}` must be one of {list(known)}, got {given[:40]!r}", param=name)
    return given


def _order(request: Request) -> str:
    return choice(request, "order", ("asc", "desc")) or "desc"


def _limit(request: Request, *, default: int, most: int) -> int:
    given = request.query_params.get("limit", str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= len(str(most)) and 1 <= int(given) <= most):
        raise InvalidRequestError(f"`limit` must be 1 to {most}, got {given[:20]!r}", param="limit")
    return int(given)


def _page(
    items: Sequence[T], id_of: Callable[[T], str], to_wire: Callable[[T], Wire], *, has_more: bool
) -> JSONResponse:
    page: dict[str, Any] = {
        "object": "list",
        "data": [to_wire(each).model_dump() for each in items],
        "first_id": id_of(items[0]) if items else None,
        "last_id": id_of(items[-1]) if items else None,
        "has_more": has_more,
    }
    return JSONResponse(page)
