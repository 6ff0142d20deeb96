"""Our recorder before a vLLM that has no layer of ours: an ASGI app that passes requests on, in a thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from loadtests.closed_loop import LoadError
from rag_stack.api.kv_trace import KvTraceRecorder
from rag_stack.serving.environment import free_port

_START_S = 30.0
_TIMEOUT = httpx.Timeout(600.0, connect=30.0)


@contextmanager
def recorded(url: str, recorder: KvTraceRecorder) -> Iterator[str]:
    """The address of a server that records what it passes on to `url`. Raises LoadError when it does not start."""
    port = free_port()
    app = recorder.around(_passing(url))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, name="recorded", daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_S
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise LoadError("the recording server did not start")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        recorder.close()


def _passing(url: str) -> Starlette:
    async def passed(request: Request) -> StreamingResponse:
        client = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT)
        asked = client.build_request("POST", request.url.path, content=await request.body(), headers=_JSON)
        answer = await client.send(asked, stream=True)

        async def pieces() -> object:
            try:
                async for piece in answer.aiter_bytes():
                    yield piece
            finally:
                await answer.aclose()
                await client.aclose()

        return StreamingResponse(pieces(), answer.status_code, {"content-type": answer.headers["content-type"]})

    return Starlette(routes=[Route("/v1/chat/completions", passed, methods=["POST"])])


_JSON = {"content-type": "application/json"}
