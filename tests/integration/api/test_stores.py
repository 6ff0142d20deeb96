"""/v1/vector_stores, /v1/models, /health and /ready."""

from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from rag_stack.api.health import Readiness
from tests.integration.api.conftest import OpenLayer
from tests.integration.api.layered import Layered
from tests.integration.conftest import ATLAS

TEXTS = {document.document_id: document for document in ATLAS}


def test_search_through_the_official_client(client: OpenAI) -> None:
    page = client.vector_stores.search("atlas", query="Which ship laid the transatlantic cable?")
    best = page.data[0]
    assert page.object == "vector_store.search_results.page"
    assert page.search_query == ["Which ship laid the transatlantic cable?"]
    assert (page.has_more, page.next_page, page.index_version) == (False, None, "atlas-v1")
    assert set(page.timings_ms) == {"queue", "embed", "search", "prompt"}
    assert (best.file_id, best.filename) == ("cable", "cable.txt")
    assert best.attributes == {"filename": "cable.txt", "topic": "engineering", "year": 1866.0, "reviewed": True}
    assert [(part.type, part.text) for part in best.content] == [("text", TEXTS["cable"].text)]
    assert TEXTS["cable"].text[best.start : best.end] == best.content[0].text
    assert best.url == TEXTS["cable"].uri
    scores = [each.score for each in page.data]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert len(page.data) == len(ATLAS)


def test_several_queries_give_one_list(client: OpenAI) -> None:
    queries = ["transatlantic cable", " hearts of an octopus "]
    page = client.vector_stores.search("atlas", query=queries, max_num_results=2)
    assert {each.file_id for each in page.data} == {"cable", "octopus"}
    assert page.search_query == [query.strip() for query in queries]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"type": "eq", "key": "topic", "value": "history"}, {"printing", "volcano"}),
        ({"type": "ne", "key": "topic", "value": "history"}, set(TEXTS) - {"printing", "volcano"}),
        ({"type": "lt", "key": "year", "value": 1500}, {"printing", "volcano"}),
        ({"type": "gte", "key": "year", "value": 1990}, {"glacier", "octopus"}),
        ({"type": "in", "key": "topic", "value": ["städte", "nothing"]}, {"zürich"}),
        ({"type": "eq", "key": "reviewed", "value": True}, {"cable", "glacier"}),
        ({"type": "eq", "key": "year", "value": "1866"}, set()),
        ({"type": "eq", "key": "nothing", "value": 1}, set()),
        (
            {
                "type": "and",
                "filters": [
                    {"type": "gt", "key": "year", "value": 1900},
                    {
                        "type": "or",
                        "filters": [
                            {"type": "eq", "key": "topic", "value": "engineering"},
                            {"type": "eq", "key": "filename", "value": "octopus.txt"},
                        ],
                    },
                ],
            },
            {"lighthouse", "octopus"},
        ),
    ],
)
def test_filters(client: OpenAI, filters: Any, found: set[str]) -> None:
    page = client.vector_stores.search("atlas", query="anything", filters=filters, max_num_results=50)
    assert {each.file_id for each in page.data} == found


def test_max_num_results_and_threshold(client: OpenAI) -> None:
    query = "transatlantic cable"
    every = client.vector_stores.search("atlas", query=query).data
    assert [each.file_id for each in client.vector_stores.search("atlas", query=query, max_num_results=3).data] == [
        each.file_id for each in every[:3]
    ]
    threshold = (every[0].score + every[1].score) / 2
    options: Any = {"ranker": "auto", "score_threshold": threshold}
    cut = client.vector_stores.search("atlas", query=query, ranking_options=options, rewrite_query=True)
    assert [each.file_id for each in cut.data] == ["cable"]


def test_nulls_and_unknown_fields_in_a_search(layered: Layered) -> None:
    body = {"query": "cable", "filters": None, "max_num_results": None, "ranking_options": None, "new": [{}] * 9000}
    assert len(layered.post("/v1/vector_stores/atlas/search", body).json()["data"]) == len(ATLAS)


def test_list(client: OpenAI) -> None:
    assert [store.id for store in client.vector_stores.list()] == ["kitchen", "atlas"], "newest first"
    first = client.vector_stores.list(limit=1)
    assert ([store.id for store in first.data], first.has_more, first.last_id) == (["kitchen"], True, "kitchen")
    assert [store.id for store in client.vector_stores.list(limit=1)] == ["kitchen", "atlas"], "pages follow each other"
    assert [store.id for store in client.vector_stores.list(after="kitchen")] == ["atlas"]
    assert [store.id for store in client.vector_stores.list(before="atlas").data] == ["kitchen"]
    assert [store.id for store in client.vector_stores.list(order="asc")] == ["atlas", "kitchen"]
    assert client.vector_stores.list(after="atlas").data == []
    assert client.vector_stores.list(before="kitchen").data == []


def test_get(client: OpenAI) -> None:
    store = client.vector_stores.retrieve("atlas")
    assert (store.id, store.name, store.object, store.status) == ("atlas", "atlas", "vector_store", "completed")
    assert store.file_counts.to_dict() == {"in_progress": 0, "completed": 8, "failed": 0, "cancelled": 0, "total": 8}
    assert store.usage_bytes > 1000
    assert store.index_version == "atlas-v1"
    with pytest.raises(NotFoundError):
        client.vector_stores.retrieve("nope")
    with pytest.raises(NotFoundError):
        client.vector_stores.search("nope", query="x")


def test_a_replica_searches_and_writes_nothing(layered: Layered) -> None:
    """Writes belong to the one process that owns the stores."""
    with layered.http() as http:
        statuses = {
            "create": http.post("/v1/vector_stores", json={}).status_code,
            "update": http.post("/v1/vector_stores/atlas", json={"name": "x"}).status_code,
            "delete": http.delete("/v1/vector_stores/atlas").status_code,
            "attach": http.post("/v1/vector_stores/atlas/files", json={"file_id": "file-x"}).status_code,
            "batch": http.post("/v1/vector_stores/atlas/file_batches", json={"file_ids": ["file-x"]}).status_code,
            "upload": http.post("/v1/files", files={"file": ("a", b"x")}).status_code,
        }
    assert statuses == {"create": 405, "update": 405, "delete": 405, "attach": 404, "batch": 404, "upload": 404}


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@atlas", "tiny@kitchen"]
    model = client.models.retrieve("tiny@atlas")
    assert (model.id, model.object, model.owned_by) == ("tiny@atlas", "model", "rag_stack")
    with pytest.raises(NotFoundError):
        client.models.retrieve("tiny@nope")


def test_health_and_ready(open_layer: OpenLayer) -> None:
    ready, starting = open_layer(), open_layer(readiness=Readiness(ready=False, parts={"engine": "loading"}))
    with ready.http() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready", "parts": {"engine": "open"}}
    with starting.http() as client:
        assert client.get("/health").status_code == 200
        response = client.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "starting", "parts": {"engine": "loading"}}
    assert 0 < int(response.headers["retry-after"]) <= 60
