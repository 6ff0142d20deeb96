"""A server that says what a test tells it to: for answers that no server of ours gives on purpose."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What one route answers: a JSON body, text, or the data frames of a stream (`frames`)."""

    body: Json | str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    frames: Sequence[Json | str] | None = None

    def to_response(self) -> Response:
        headers = dict(self.headers)
        if self.frames is not None:
            return StreamingResponse(_events(self.frames), media_type="text/event-stream", headers=headers)
        if isinstance(self.body, str):
            return PlainTextResponse(self.body, status_code=self.status, headers=headers)
        content = json.dumps(self.body)
        return Response(content, status_code=self.status, headers=headers, media_type="application/json")


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    route: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Json | None


def build_scripted(replies: Mapping[str, Reply | Sequence[Reply]]) -> Starlette:
    """An app that answers `"METHOD /path"` with its reply, a list of them one after another; the last one stays.

    `app.state.received` holds the requests.
    """
    queues = {route: [reply] if isinstance(reply, Reply) else list(reply) for route, reply in replies.items()}

    async def answer(request: Request) -> Response:
        data = await request.body()
        route = f"{request.method} {request.url.path}"
        body = json.loads(data) if data else None
        app.state.received.append(Received(route, dict(request.query_params), dict(request.headers), body))
        queue = queues.get(route)
        if not queue:
            return PlainTextResponse("Not Found", status_code=404)
        return (queue.pop(0) if len(queue) > 1 else queue[0]).to_response()

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    app.state.received = []
    return app


async def _events(frames: Sequence[Json | str]) -> AsyncIterator[str]:
    for frame in frames:
        yield f"data: {frame if isinstance(frame, str) else json.dumps(frame)}\n\n"
