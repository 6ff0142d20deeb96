"""A real layer reads a prompt ahead of a rerank: what the engine sees of it, and that the client sees nothing."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from starlette.applications import Starlette

from rag_stack.metrics import PREFILLS, MemoryRecorder
from rag_stack.rag.prefill import PrefillSettings
from rag_stack.types import Passage
from tests.layer import build_layer

SETTINGS = PrefillSettings(at_once=1, least_share=0.0)
LEARNED = 4
QUESTION = "Where does the lighthouse keeper climb?"


class WaitingReranker:
    """Keeps the order, or turns it; may wait until the engine has been asked once more."""

    def __init__(self, engine: Starlette) -> None:
        self.engine = engine
        self.waits = self.turns = False

    def scores(
        self, query: str, passages: Sequence[Passage], *, stopped: Callable[[], bool]
    ) -> npt.NDArray[np.float32]:
        before, tick = len(self.engine.state.requests), threading.Event()
        for _ in range(1000 if self.waits else 0):
            if len(self.engine.state.requests) > before:
                break
            tick.wait(0.01)
        scores = np.linspace(1.0, 0.5, len(passages), dtype=np.float32)
        return scores[::-1].copy() if self.turns else scores


@pytest.fixture
def reranker(engine: Starlette) -> WaitingReranker:
    return WaitingReranker(engine)


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
def client(engine: Starlette, reranker: WaitingReranker, recorder: MemoryRecorder, tmp_path: Path) -> httpx.AsyncClient:
    layer = build_layer(engine, tmp_path / "stores", reranker=reranker, prefill=SETTINGS, recorder=recorder)
    return httpx.AsyncClient(transport=httpx.ASGITransport(layer), base_url="http://test")


async def ask(client: httpx.AsyncClient, **fields: Any) -> str:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 32,
        **fields,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    return answer.text


def outcomes(recorder: MemoryRecorder) -> list[int]:
    return [len(recorder.values(PREFILLS, {"outcome": each})) for each in ("started", "used", "cancelled", "failed")]


async def learn(client: httpx.AsyncClient, engine: Starlette) -> str:
    answers = [await ask(client) for _ in range(LEARNED)]
    assert len(engine.state.requests) == LEARNED
    return answers[-1]


async def test_the_engine_reads_the_final_prompt_ahead_and_the_client_sees_nothing_of_it(
    engine: Starlette, reranker: WaitingReranker, recorder: MemoryRecorder, client: httpx.AsyncClient
) -> None:
    before = await learn(client, engine)
    reranker.waits = True
    after = await ask(client, priority=0, logprobs=True, n=1)
    ahead, final = engine.state.requests[LEARNED:]
    assert ahead["messages"] == final["messages"]
    assert {key: value for key, value in ahead.items() if key != "messages"} == {
        "model": "tiny",
        "max_tokens": 1,
        "temperature": 0.0,
        "stream": False,
    }
    assert final["max_tokens"] == 32
    assert before.count('"usage"') == after.count('"usage"')
    assert outcomes(recorder) == [1, 1, 0, 0]


async def test_a_prompt_that_turns_out_otherwise_is_cancelled_and_the_answer_is_right(
    engine: Starlette, reranker: WaitingReranker, recorder: MemoryRecorder, client: httpx.AsyncClient
) -> None:
    await learn(client, engine)
    reranker.waits = reranker.turns = True
    await ask(client)
    ahead, final = engine.state.requests[LEARNED:]
    assert ahead["messages"] != final["messages"]
    assert outcomes(recorder) == [1, 0, 1, 0]


async def test_an_engine_that_refuses_to_read_ahead_still_answers(
    engine: Starlette, reranker: WaitingReranker, recorder: MemoryRecorder, client: httpx.AsyncClient
) -> None:
    await learn(client, engine)
    reranker.waits = True

    class Refused(list[Any]):
        def append(self, body: Any) -> None:
            super().append(body)
            engine.state.error = (500, "no") if body.get("max_tokens") == 1 else None

    engine.state.requests = Refused(engine.state.requests)
    assert "data: [DONE]" in await ask(client)
    assert outcomes(recorder)[0] == 1


async def test_a_question_without_a_search_reads_nothing_ahead(
    engine: Starlette, reranker: WaitingReranker, recorder: MemoryRecorder, client: httpx.AsyncClient
) -> None:
    await learn(client, engine)
    await ask(client, documents=[{"text": "The keeper climbs."}])
    assert len(engine.state.requests) == LEARNED + 1
    assert outcomes(recorder) == [0, 0, 0, 0]
