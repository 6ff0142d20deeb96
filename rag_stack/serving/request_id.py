"""Ray Serve names every request and puts the name on every answer; our gate takes it over and must not say it twice."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class NamedByServe:
    """An ASGI app whose answers leave without a request id, since Serve adds its own, which is the same."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unnamed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message.get("headers", []) if k.lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_unnamed)
