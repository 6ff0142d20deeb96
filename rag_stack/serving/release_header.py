"""Every answer names the release version that gave it, also one without a body of ours: in a header."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

RELEASE_HEADER: Final = "x-rag-release"


class NamedByRelease:
    """An ASGI app whose answers say which release they are from: `name@version`."""

    def __init__(self, app: ASGIApp, *, name: str, version: str) -> None:
        self._app = app
        self._header = (RELEASE_HEADER.encode(), f"{name}@{version}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self._header]}
            await send(message)

        await self._app(scope, receive, send_named)
