"""POST /v1/rerank and /v2/rerank, in Cohere's and Jina's shape."""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from rag_stack.api.auth import KeyRing
from rag_stack.api.gate import Gate
from rag_stack.api.rerank import RerankEndpoint
from rag_stack.metrics import MemoryRecorder

JSON = [(b"content-type", b"application/json")]
DOCUMENTS = ["rye bread", "whale oil burns", "oil"]


class CountingReranker:
    """Scores a text by the share of the query's words that it has."""

    name = "counts"

    def text_scores(self, query: str, texts: Sequence[str], *, stopped: Callable[[], bool]) -> npt.NDArray[np.float32]:
        words = query.split()
        return np.array([sum(word in text.split() for word in words) / len(words) for text in texts], np.float32)


class SlowReranker(CountingReranker):
    """Goes on until nobody waits and its gate is open, as one that is in the middle of a pair; counts those at once."""

    def __init__(self) -> None:
        self.began, self.gate = threading.Semaphore(0), threading.Event()
        self.calls = self.now = self.most = 0
        self._lock = threading.Lock()

    def text_scores(self, query: str, texts: Sequence[str], *, stopped: Callable[[], bool]) -> npt.NDArray[np.float32]:
        with self._lock:
            self.calls, self.now = self.calls + 1, self.now + 1
            self.most = max(self.most, self.now)
        self.began.release()
        for _ in range(3000):
            if query != "slow" or stopped():
                break
            threading.Event().wait(0.01)
        assert self.gate.wait(30)
        with self._lock:
            self.now -= 1
        return super().text_scores(query, texts, stopped=stopped)


async def leave(endpoint: RerankEndpoint, *, after: Callable[[], bool]) -> None:
    """A request whose client goes away."""
    messages = [{"type": "http.request", "body": json.dumps({"query": "slow", "documents": ["oil"]}).encode()}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.to_thread(after)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    path = "/v1/rerank"
    scope = {"type": "http", "method": "POST", "path": path, "headers": JSON, "query_string": b"", "root_path": ""}
    gate = Gate(endpoint.routes(), keys=KeyRing(()), open_paths=(), recorder=MemoryRecorder())
    await gate(scope, receive, send)


def client(reranker: CountingReranker | None) -> httpx.AsyncClient:
    endpoint = RerankEndpoint(reranker, 1 << 20)
    gate = Gate(endpoint.routes(), keys=KeyRing(()), open_paths=(), recorder=MemoryRecorder())
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://test")


async def post(body: Any, *, path: str = "/v1/rerank", with_reranker: bool = True) -> httpx.Response:
    async with client(CountingReranker() if with_reranker else None) as http:
        return await http.post(path, json=body)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
async def test_documents_come_back_best_first_under_their_places(path: str) -> None:
    answer = await post({"model": "counts", "query": "whale oil", "documents": DOCUMENTS}, path=path)
    assert answer.status_code == 200
    assert answer.json()["model"] == "counts"
    assert answer.json()["results"] == [
        {"index": 1, "relevance_score": 1.0, "document": {"text": "whale oil burns"}},
        {"index": 2, "relevance_score": 0.5, "document": {"text": "oil"}},
        {"index": 0, "relevance_score": 0.0, "document": {"text": "rye bread"}},
    ]


async def test_the_best_alone_without_their_texts_of_objects_too() -> None:
    documents = [{"text": text, "id": n} for n, text in enumerate(DOCUMENTS)]
    answer = await post({"query": "oil", "documents": documents, "top_n": 1, "return_documents": False})
    assert answer.json()["results"] == [{"index": 1, "relevance_score": 1.0}]


async def test_many_documents_keep_their_places() -> None:
    documents = ["rye"] * 70 + ["oil"] + ["rye"] * 9
    answer = await post({"query": "oil", "documents": documents})
    assert [each["index"] for each in answer.json()["results"]] == [70, *range(70), *range(71, 80)]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": "oil"}, 400, "documents: Field required"),
        ({"query": "oil", "documents": []}, 400, "documents: List should have at least 1 item"),
        ({"query": "  ", "documents": ["a"]}, 400, "`query` must not be empty"),
        ({"query": ["oil"], "documents": ["a"]}, 400, "query: Input should be a valid string"),
        ({"query": "oil", "documents": ["a"], "top_n": 0}, 400, "top_n"),
        ({"query": "oil", "documents": [3]}, 400, "documents"),
        ({"query": "oil", "documents": ["a"] * 1001}, 400, "at most 1000"),
        ({"query": "oil", "documents": ["a"], "model": "other"}, 404, "the release's reranker is 'counts'"),
    ],
)
async def test_what_makes_no_sense_is_told(body: Any, status: int, message: str) -> None:
    answer = await post(body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


async def test_a_release_without_a_reranker_says_so() -> None:
    answer = await post({"query": "oil", "documents": ["a"]}, with_reranker=False)
    assert answer.status_code == 404
    assert "`reranker:` in the release file" in answer.json()["error"]["message"]


async def test_who_goes_away_frees_the_turn_once_the_thread_has_ended_and_no_sooner() -> None:
    reranker = SlowReranker()
    endpoint = RerankEndpoint(reranker, 1 << 20)
    gate = Gate(endpoint.routes(), keys=KeyRing(()), open_paths=(), recorder=MemoryRecorder())
    body = {"query": "oil", "documents": DOCUMENTS}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://test") as http:
        await leave(endpoint, after=lambda: reranker.began.acquire(timeout=30))
        await asyncio.gather(*(leave(endpoint, after=bool) for _ in range(12)))
        assert (reranker.calls, reranker.now) == (1, 1), "those who left while they waited were never computed"
        asked = [asyncio.create_task(http.post("/v1/rerank", json=body)) for _ in range(16)]
        (refused,), waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert (refused.result().status_code, refused.result().headers["retry-after"]) == (429, "1")
        reranker.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * 15
    assert reranker.most == 1
    endpoint.close()


async def test_after_the_end_it_says_so() -> None:
    endpoint = RerankEndpoint(CountingReranker(), 1 << 20)
    endpoint.close()
    gate = Gate(endpoint.routes(), keys=KeyRing(()), open_paths=(), recorder=MemoryRecorder())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://test") as http:
        assert (await http.post("/v1/rerank", json={"query": "oil", "documents": DOCUMENTS})).status_code == 503
