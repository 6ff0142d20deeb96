"""The question that a replica asks itself: through retrieval and prompt to one token, before anybody is let in."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.config import Release
from rag_stack.metrics import RETRIEVAL_MS, MemoryRecorder
from rag_stack.serving.first_token import first_token
from tests.engine import build_engine
from tests.layer import build_layer


def release(tmp_path: Path, model: str, **changes: object) -> Release:
    fields = {
        "name": "test",
        "artifacts": {"root": f"file://{tmp_path}/store", "cache": tmp_path / "cache"},
        "model": {"name": model},
        "embedder": {"name": "words"},
        "stores": [{"name": "town", "index": "town"}],
    }
    return Release.model_validate(fields | changes)


async def test_it_takes_the_whole_way_of_a_request(tmp_path: Path) -> None:
    engine, recorder = build_engine(), MemoryRecorder()
    app = build_layer(engine, tmp_path / "indexes", default_store=None, recorder=recorder)
    assert await first_token(app, release(tmp_path, engine.state.model))
    assert len(recorder.values(RETRIEVAL_MS, {"stage": "search"})) == 1


async def test_without_a_store_it_only_generates(tmp_path: Path) -> None:
    engine, recorder = build_engine(), MemoryRecorder()
    app = build_layer(engine, tmp_path / "indexes", stores={}, default_store=None, recorder=recorder)
    assert await first_token(app, release(tmp_path, engine.state.model, stores=[]))
    assert recorder.values(RETRIEVAL_MS, {"stage": "search"}) == []


def answering(status: int) -> Starlette:
    async def answer(_: Request) -> JSONResponse:
        return JSONResponse({"error": {"message": "no chat template"}}, status_code=status)

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


async def test_an_engine_that_refuses_may_still_serve_others(tmp_path: Path) -> None:
    assert not await first_token(answering(400), release(tmp_path, "generator"))


async def test_an_engine_that_breaks_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"500 .*no chat template"):
        await first_token(answering(500), release(tmp_path, "generator"))
