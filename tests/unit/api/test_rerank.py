"""POST /v1/rerank and /v2/rerank, in Cohere's and Jina's shape."""

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from rag_stack.api.auth import KeyRing
from rag_stack.api.gate import Gate
from rag_stack.api.rerank import RerankEndpoint
from rag_stack.metrics import MemoryRecorder

DOCUMENTS = ["rye bread", "whale oil burns", "oil"]


class CountingReranker:
    """Scores a text by the share of the query's words that it has."""

    name = "counts"

    def text_scores(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        words = query.split()
        return np.array([sum(word in text.split() for word in words) / len(words) for text in texts], np.float32)


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


async def test_more_documents_than_are_scored_in_a_step_keep_their_places() -> None:
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
