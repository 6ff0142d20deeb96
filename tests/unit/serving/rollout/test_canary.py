"""Canary questions go the whole way of a request, and say what is wrong with an answer."""

import asyncio
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rag_stack.config import Canary, Release
from rag_stack.releases.progress import CanaryResult
from rag_stack.serving.rollout.canary import ask_canaries
from tests.layer import build_layer

RELEASE = Release.model_validate(
    {
        "name": "r",
        "model": {"name": "tiny"},
        "embedder": {"name": "e"},
        "stores": [{"name": "town", "index": "town"}],
        "default_store": "town",
    }
)
KEEPER = "How many steps does the keeper of the lighthouse climb?"


async def ask(engine: Starlette, folder: Path, canary: Canary) -> CanaryResult:
    (result,) = await ask_canaries(build_layer(engine, folder), RELEASE, [canary])
    assert result.question == canary.question
    return result


async def test_a_question_passes_by_its_source_and_its_answer(engine: Starlette, tmp_path: Path) -> None:
    canary = Canary(question=KEEPER, expect=("elsewhere.txt", "lighthouse.txt"), answer_contains="WHALE OIL")
    engine.state.answer = "It burns whale oil."
    assert await ask(engine, tmp_path, canary) == CanaryResult(question=KEEPER, passed=True)
    by_id = Canary(question=KEEPER, expect=("lighthouse",))
    assert (await ask(engine, tmp_path / "again", by_id)).passed


async def test_a_missing_source_is_named_beside_those_that_came(engine: Starlette, tmp_path: Path) -> None:
    result = await ask(engine, tmp_path, Canary(question=KEEPER, expect=("elsewhere.txt",)))
    assert not result.passed
    assert "elsewhere.txt" in result.detail
    assert "lighthouse.txt" in result.detail


async def test_an_answer_that_does_not_hold_the_words_fails(engine: Starlette, tmp_path: Path) -> None:
    engine.state.answer = "I do not know."
    result = await ask(engine, tmp_path, Canary(question=KEEPER, answer_contains="200"))
    assert not result.passed
    assert "I do not know." in result.detail


async def test_an_engine_that_refuses_or_breaks_fails_the_canary_and_not_the_replica(
    engine: Starlette, tmp_path: Path
) -> None:
    engine.state.error = (500, "out of memory")
    result = await ask(engine, tmp_path, Canary(question=KEEPER))
    assert not result.passed
    assert "out of memory" in result.detail
    assert result.answered


@pytest.mark.parametrize(
    "body",
    [
        '{"choices": []}',
        '{"choices": [{"message": null}]}',
        '{"error": {"message": "no room"}}',
        '["no room"]',
        "no room",
    ],
)
async def test_an_answer_of_another_form_has_not_passed_and_says_why(body: str) -> None:
    app = Response(body, media_type="application/json")
    (result,) = await ask_canaries(app, RELEASE, [Canary(question=KEEPER)])
    assert (result.question, result.passed, result.answered) == (KEEPER, False, True)
    assert "Error" in result.detail
    assert body in result.detail


async def no_response(scope: Scope, receive: Receive, send: Send) -> None: ...


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def test_an_app_that_says_nothing_at_all_has_not_passed() -> None:
    (result,) = await ask_canaries(no_response, RELEASE, [Canary(question=KEEPER)])
    assert (result.passed, result.answered) == (False, True)


async def test_what_finds_no_room_or_no_time_was_not_answered(engine: Starlette, tmp_path: Path) -> None:
    (late,) = await ask_canaries(never, RELEASE, [Canary(question=KEEPER)], limit_s=0.01)
    assert (late.passed, late.answered, late.detail) == (False, False, "no answer within 0.01 s")
    engine.state.error = (429, "too much")
    refused = await ask(engine, tmp_path, Canary(question=KEEPER))
    assert (refused.passed, refused.answered) == (False, False)
    assert "too much" in refused.detail
