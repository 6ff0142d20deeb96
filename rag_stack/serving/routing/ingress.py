"""What HAProxy asks before each POST to the engine: which replica takes it."""

from dataclasses import dataclass, field
from typing import Any

from ray.serve._private.http_util import session_id_from_headers
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body, or as much of its beginning as HAProxy had in its buffer."""

    data: bytes = field(repr=False)


class RouteIngress:
    """In the place of Ray Serve LLM's LLMRouter, with the same contract towards HAProxy.

    That one takes a body for JSON and a cut one for nothing, reads it where nobody needs it, and answers 500 to one
    that is nested too deeply, which HAProxy makes a 503. This one hands the body on, and the policy looks into it.
    """

    def __init__(self, server: DeploymentHandle) -> None:
        self._handle = server
        self._handle._init()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app that Serve runs."""
        return Starlette(routes=[Route("/internal/route", self._route, methods=["POST"])])

    async def _route(self, request: Request) -> JSONResponse:
        session = session_id_from_headers(dict(request.headers))
        handle = self._handle.options(session_id=session) if session else self._handle
        try:
            return JSONResponse(await _choose(handle, Body(await request.body())))
        except (RayServeException, RuntimeError) as exc:
            return JSONResponse({"detail": str(exc)}, status_code=503)


async def _choose(handle: DeploymentHandle, body: Body) -> dict[str, Any]:
    """The replica; asked of nobody else, since the request itself goes there past Ray."""
    async with handle.choose_replica(body, _reserve=False) as selection:
        replica = selection._replica
        if replica.backend_http_endpoint is None:
            raise RuntimeError(f"replica {selection.replica_id} has no backend HTTP endpoint")
        host, port = replica.backend_http_endpoint
        return {"host": host, "port": port, "replica_id": replica.replica_id.to_full_id_str()}
