"""What the kubelet and Prometheus ask, on a port that no client reaches."""

from collections.abc import Callable

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from rag_stack.activator.measure import PrometheusRecorder
from rag_stack.activator.ray_service import Phase
from rag_stack.activator.watch import Watch


class Ops:
    """`/healthz`: this process lives. `/readyz`: it knows of the RayService. `/metrics`: Prometheus' text.

    Whether the API server answers later is not asked: one that serves goes on without it.
    """

    def __init__(self, watch: Watch, recorder: PrometheusRecorder, *, tell: Callable[[], None]) -> None:
        """`tell` records what is so now, before it is read."""
        self._watch = watch
        self._recorder = recorder
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._answer(scope["path"])(scope, receive, send)

    def _answer(self, path: str) -> Response:
        watch = self._watch
        match path:
            case "/healthz":
                return PlainTextResponse("ok\n")
            case "/readyz":
                told = {"phase": watch.phase.value, "trouble": watch.trouble}
                return JSONResponse(told, status_code=503 if watch.phase is Phase.UNKNOWN else 200)
            case "/metrics":
                self._tell()
                return Response(self._recorder.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
            case _:
                return PlainTextResponse("expected /healthz, /readyz or /metrics\n", status_code=404)
