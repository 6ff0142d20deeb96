"""GET /health: this process lives. GET /ready: engine and indexes are open."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

OPEN_PATHS = ("/health", "/ready")


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is open, and what is not yet."""

    ready: bool
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """The handlers."""

    readiness: Callable[[], Awaitable[Readiness]]

    def routes(self) -> list[Route]:
        """What this owns; both answer without a key."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
        ]

    async def health(self, _: Request) -> JSONResponse:
        """Live: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> JSONResponse:
        """200 once a question would be answered, 503 with what is missing before that."""
        state = await self.readiness()
        body = {"status": "ready" if state.ready else "starting", "parts": state.parts}
        headers = {} if state.ready else {"retry-after": "5"}
        return JSONResponse(body, status_code=200 if state.ready else 503, headers=headers)
