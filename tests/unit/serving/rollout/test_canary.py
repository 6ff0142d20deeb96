"""Canary questions go the whole way of a request, and say what is wrong with an answer."""

from pathlib import Path

from starlette.applications import Starlette

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
