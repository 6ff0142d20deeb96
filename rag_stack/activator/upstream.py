"""Passes a request on to the RayService's own Service, byte for byte and both ways, as an ASGI app.

A client that goes away ends its request there. What is told hop by hop is not passed on. Each request has a connection
of its own: one that was kept could lead to a pod that is gone.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httpx
from starlette.types import Message, Receive, Scope, Send

from rag_stack.api.http import ClientDisconnectedError
from rag_stack.errors import NotReachedError, UnavailableError

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_CONNECT_S: Final = 5.0
# An answer may be as long in coming as it likes: it says itself that it lives.
_TIMEOUT: Final = httpx.Timeout(None, connect=_CONNECT_S)
_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=0)


class Upstream:
    """One RayService's Service. Raises NotReachedError before anything is sent, UnavailableError after."""

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS, trust_env=False, follow_redirects=False)

    async def close(self) -> None:
        """No more requests."""
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and its answer back. Raises ClientDisconnectedError too."""
        body, ended = _Body(receive), asyncio.Event()

        async def send_on(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                ended.set()

        if not has_body(scope):
            body.none()
        passing = asyncio.create_task(self._pass(scope, body, send_on))
        gone = asyncio.create_task(body.listen())
        try:
            await asyncio.wait({passing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not passing.done() and not ended.is_set():  # after its answer every client counts as gone
                raise ClientDisconnectedError
            await passing
        finally:
            passing.cancel()
            gone.cancel()
            await asyncio.gather(passing, gone, return_exceptions=True)

    async def _pass(self, scope: Scope, body: "_Body", send: Send) -> None:
        path = scope.get("raw_path") or scope["path"].encode()
        target = path + (b"?" + scope["query_string"] if scope.get("query_string") else b"")
        headers = [*_end_to_end(scope["headers"], also=frozenset({b"expect", b"host"})), *_forwarded(scope)]
        request = self._client.build_request(
            scope["method"],
            self._url.copy_with(raw_path=target),
            headers=headers,
            content=body.parts() if has_body(scope) else None,
        )
        for name in ("accept", "accept-encoding", "user-agent"):  # httpx would add its own
            if not any(key.lower() == name.encode() for key, _ in headers):
                request.headers.pop(name, None)
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise NotReachedError(f"nobody listens at {self._url}", retry_after_s=1) from exc
        except httpx.HTTPError as exc:
            raise UnavailableError("the service went away before it answered; try again", retry_after_s=1) from exc
        try:
            await _answer(response, send)
        finally:
            await response.aclose()


async def _answer(response: httpx.Response, send: Send) -> None:
    headers = _end_to_end([(key.lower(), value) for key, value in response.headers.raw])
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    try:
        async for part in response.aiter_raw():
            await send({"type": "http.response.body", "body": part, "more_body": True})
    except httpx.HTTPError as exc:
        raise UnavailableError("the service went away before its answer was complete", retry_after_s=1) from exc
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """What the client sends, and then that it goes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._over = asyncio.Event()

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, as it comes."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._over.set()
                raise ClientDisconnectedError
            yield message.get("body", b"")
            if not message.get("more_body", False):
                self._over.set()
                return

    async def listen(self) -> None:
        """Returns when the client has gone; looks only once the body has been read, or is known to be none."""
        await self._over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def none(self) -> None:
        """There is no body to wait for."""
        self._over.set()


def has_body(scope: Scope) -> bool:
    """Whether a request has a body, which is then to be read."""
    return any(key in (b"content-length", b"transfer-encoding") for key, _ in scope["headers"])


def _end_to_end(
    headers: list[tuple[bytes, bytes]], *, also: frozenset[bytes] = frozenset()
) -> list[tuple[bytes, bytes]]:
    """The headers that are for the other end, without those that `Connection` names."""
    named = {part.strip().lower() for key, value in headers if key == b"connection" for part in value.split(b",")}
    dropped = _HOP_BY_HOP | also | named
    return [(key, value) for key, value in headers if key not in dropped]


def _forwarded(scope: Scope) -> list[tuple[bytes, bytes]]:
    """From whom it comes, for the service's logs. What was told before stays before it."""
    client = scope.get("client")
    return [(b"x-forwarded-for", client[0].encode())] if client else []
