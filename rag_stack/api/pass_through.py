"""Routes that the engine answers alone."""

from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api.admission import Admission
from rag_stack.api.engine import EngineErrors, inner_scope
from rag_stack.api.entrance import ask_of, let_in
from rag_stack.api.http import read_json
from rag_stack.api.traced_engine import forward_traced
from rag_stack.api.traffic import GENERATES
from rag_stack.errors import InvalidRequestError
from rag_stack.tracing.tracer import UNTRACED, Tracer


class PassThrough:
    """A route that the engine answers alone: its body is checked for size and shape, not changed."""

    def __init__(
        self, engine: ASGIApp, *, admission: Admission | None, max_body_bytes: int, tracer: Tracer = UNTRACED
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._tracer = tracer
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] != "POST":
            await self._engine(inner_scope(scope), receive, EngineErrors(send))
            return
        body = await read_json(scope, receive, max_bytes=self._max_body_bytes)
        tools = body.get("tools")
        if isinstance(tools, list) and any(isinstance(t, Mapping) and t.get("type") == "file_search" for t in tools):
            raise InvalidRequestError(
                f"{scope['path']} does not search yet: ask for file_search in /v1/chat/completions", param="tools"
            )

        async def answer(send: Send, timed: Callable[[Send], Send]) -> None:
            await forward_traced(self._tracer, self._engine, scope, receive, timed(EngineErrors(send)), body=body)

        admission = self._admission if scope["path"] in GENERATES else None
        streams = body.get("stream") is True
        ask = ask_of(scope, body)
        await let_in(admission, ask, scope, receive, send, streams=streams, answer=answer, tracer=self._tracer)
