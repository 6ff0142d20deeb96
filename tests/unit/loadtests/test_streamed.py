"""Every way in which an answer can end, as the load generators see it."""

from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loadtests.streamed import ask
from tests.servers import closed_port, serve

FIRST = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]}\n\n'
SECOND = b'data: {"choices": [{"index": 0, "delta": {"content": "b"}}]}\n\n'
LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "rag": {"store": "town"}}\n\n'
USAGE = (
    b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, '
    b'"prompt_tokens_details": {"cached_tokens": 4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
STREAMS = {
    "whole": [b": waiting\n\n", FIRST, SECOND, LAST, USAGE, DONE],
    "without done": [FIRST, LAST],
    "without text": [LAST, DONE],
    "cut off": [FIRST, SECOND],
    "error frame": [FIRST, b'data: {"error": {"message": "the engine died", "code": 500}}\n\n', DONE],
}


async def _answer(request: Request) -> Response:
    kind = (await request.json())["kind"]
    if kind in STREAMS:

        async def pieces() -> AsyncIterator[bytes]:
            for piece in STREAMS[kind]:
                yield piece

        return StreamingResponse(pieces(), media_type="text/event-stream")
    return JSONResponse({"error": {"message": "no"}}, status_code=int(kind), headers={"retry-after": "3"})


APP = Starlette(routes=[Route("/v1/chat/completions", _answer, methods=["POST"])])


@pytest.mark.parametrize(
    ("kind", "problem", "text"),
    [
        ("whole", "", "ab"),
        ("without done", "", "a"),
        ("without text", "", ""),
        ("cut off", "cut off", "ab"),
        ("error frame", "error frame", "a"),
        ("429", "refused", ""),
        ("503", "status", ""),
    ],
)
async def test_how_an_answer_ends_is_told(kind: str, problem: str, text: str) -> None:
    with serve(APP) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            came = await ask(client, {"kind": kind})
    assert (came.problem, came.text) == (problem, text)
    assert came.status == (int(kind) if kind.isdecimal() else 200)
    assert (came.ttft_ms is None) == kind.isdecimal()


async def test_what_an_answer_is_made_of() -> None:
    with serve(APP) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            came = await ask(client, {"kind": "whole"})
            refused = await ask(client, {"kind": "429"})
    assert (came.output_tokens, came.cached_tokens, came.rag) == (2, 4, {"store": "town"})
    assert came.tpot_ms == pytest.approx(came.gaps_ms[0])
    assert came.ttft_ms is not None
    assert 0 < came.ttft_ms <= came.total_ms
    assert refused.headers["retry-after"] == "3"


async def test_nobody_there_is_an_outcome_too() -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{closed_port()}") as client:
        assert (await ask(client, {"kind": "whole"})).problem == "connection"
