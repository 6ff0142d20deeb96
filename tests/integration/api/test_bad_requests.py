"""Bad input is an OpenAI-shaped 4xx that says what was expected; the engine never hears of it."""

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.integration.api.layered import MAX_BODY_BYTES, Layered

CHAT = "/v1/chat/completions"
SEARCH = "/v1/vector_stores/atlas/search"
USER = [{"role": "user", "content": "Which ship laid the cable?"}]
JSON = {"content-type": "application/json"}


def _check(response: httpx.Response, status: int, param: str | None = None) -> str:
    """The shape of a refusal; its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) < 5000
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"]
    if param is not None:
        assert body["error"]["param"] == param
    return str(body["error"]["message"])


def _nested(levels: int) -> dict[str, Any]:
    wanted: dict[str, Any] = {"type": "eq", "key": "topic", "value": "nature"}
    for _ in range(levels):
        wanted = {"type": "and", "filters": [wanted]}
    return wanted


def _wide(levels: int) -> dict[str, Any]:
    return {"type": "and", "filters": [_wide(levels - 1)] * 60} if levels else {}


def _search(**settings: Any) -> dict[str, Any]:
    return {"tools": [{"type": "file_search", "vector_store_ids": ["atlas"], **settings}]}


ALIAS = {"model": "tiny@atlas"}
CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": ["hello"]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": [{"role": "user", "content": ["hello"]}]}, "messages"),
    ({"messages": [{"role": "system", "content": {"a": 1}}, *USER], **ALIAS}, "messages"),
    ({"messages": [{"role": "system", "content": "alone"}], **ALIAS}, "messages"),
    ({"messages": [{"role": "user", "content": None}], **ALIAS}, "messages"),
    ({"messages": [{"role": "user"}], **ALIAS}, "messages"),
    ({"messages": [{"role": "user", "content": "  \n"}], **ALIAS}, "messages"),
    ({"messages": [{"role": "user", "content": []}], **ALIAS}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 32_769}], **ALIAS}, "messages"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"include": "rag.messages"}, "include"),
    ({"include": [1]}, "include"),
    ({"rag_retrieval": "some"}, "rag_retrieval"),
    ({"rag_retrieval": False}, "rag_retrieval"),
    ({"vector_store_ids": "atlas"}, "vector_store_ids"),
    ({"vector_store_ids": []}, "vector_store_ids"),
    ({"vector_store_ids": [1]}, "vector_store_ids"),
    ({"vector_store_ids": {"a": 1}}, "vector_store_ids"),
    ({"documents": []}, "documents"),
    ({"documents": "text"}, "documents"),
    ({"documents": ["text"]}, "documents"),
    ({"documents": [{"title": "no text"}]}, "documents"),
    ({"documents": [{"text": ""}]}, "documents"),
    ({"documents": [{"text": ["a"]}]}, "documents"),
    ({"documents": [{"text": "a"}] * 51}, "documents"),
    ({"documents": [{}] * 50_000}, "documents"),
    ({"tools": [{"type": "file_search"}]}, "tools"),
    (_search(vector_store_ids=[]), "tools"),
    (_search(vector_store_ids="atlas"), "tools"),
    (_search(vector_store_ids=[1] * 50_000), "tools"),
    (_search(max_num_results=0), "tools"),
    (_search(max_num_results=51), "tools"),
    (_search(max_num_results="many"), "tools"),
    (_search(ranking_options={"score_threshold": 2}), "tools"),
    (_search(filters="topic"), "tools"),
    (_search(filters=[]), "tools"),
    (_search(filters=_nested(100)), "tools"),
    (_search(filters=_wide(3)), "tools"),
    (_search(filters=_nested(9)), "filters"),
    ({"tools": [*_search()["tools"], *_search()["tools"]]}, "tools"),
    ({"tools": [{"type": "file_search", "n": n} for n in range(7000)]}, "tools"),
]


@pytest.mark.parametrize(("change", "param"), CHATS, ids=[str(n) for n in range(len(CHATS))])
def test_chat(layered: Layered, change: dict[str, Any], param: str) -> None:
    _check(layered.chat({"messages": USER, **change}), 400, param)
    assert layered.engine.state.requests == []
    assert layered.chat({"messages": USER, **ALIAS}).status_code == 200


SEARCHES: list[tuple[dict[str, Any], str]] = [
    ({"query": None}, "query"),
    ({"query": ""}, "query"),
    ({"query": " \t"}, "query"),
    ({"query": []}, "query"),
    ({"query": ["cable", ""]}, "query"),
    ({"query": 5}, "query"),
    ({"query": ["cable"] * 17}, "query"),
    ({"query": [5] * 50_000}, "query"),
    ({"query": "x" * 32_769}, "query"),
    ({"max_num_results": 0}, "max_num_results"),
    ({"max_num_results": 51}, "max_num_results"),
    ({"max_num_results": -1}, "max_num_results"),
    ({"max_num_results": "x"}, "max_num_results"),
    ({"max_num_results": 1.5}, "max_num_results"),
    ({"max_num_results": 10**30}, "max_num_results"),
    ({"ranking_options": {"score_threshold": -1}}, "ranking_options"),
    ({"ranking_options": []}, "ranking_options"),
    ({"filters": "topic"}, "filters"),
    ({"filters": {}}, "filters"),
    ({"filters": {"type": "near", "key": "topic", "value": 1}}, "filters"),
    ({"filters": {"type": "eq", "key": "topic"}}, "filters"),
    ({"filters": {"type": "eq", "key": "topic", "value": {"a": 1}}}, "filters"),
    ({"filters": {"type": "eq", "key": "", "value": 1}}, "filters"),
    ({"filters": {"type": "eq", "key": "topic", "value": ["a"]}}, "filters"),
    ({"filters": {"type": "in", "key": "topic", "value": "a"}}, "filters"),
    ({"filters": {"type": "in", "key": "topic", "value": [{}] * 50_000}}, "filters"),
    ({"filters": {"type": "gt", "key": "reviewed", "value": True}}, "filters"),
    ({"filters": {"type": "and", "filters": []}}, "filters"),
    ({"filters": _nested(9)}, "filters"),
    ({"filters": _nested(100)}, "filters"),
    ({"filters": _wide(3)}, "filters"),
]


@pytest.mark.parametrize(("change", "param"), SEARCHES, ids=[str(n) for n in range(len(SEARCHES))])
def test_search(layered: Layered, change: dict[str, Any], param: str) -> None:
    _check(layered.post(SEARCH, {"query": "cable", **change}), 400, param)
    assert layered.post(SEARCH, {"query": "cable"}).status_code == 200


BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"null", 400),
    (b"[]", 400),
    (b'"text"', 400),
    (b"5", 400),
    (b"\xff\xfe\x00", 400),
    (b'{"a": "\xff"}', 400),
    ('{"model": "tiny"}'.encode("utf-16"), 400),
    (b"[" * 100_000, 400),
    (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, 400),
    (b'{"temperature": NaN}', 400),
    (b'{"temperature": -Infinity}', 400),
    (b'{"temperature": 1e999}', 400),
    (b'{"seed": ' + b"9" * 5000 + b"}", 400),
    (b'{"user": "\\ud800"}', 400),
    (b" " * (MAX_BODY_BYTES + 1), 413),
]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", SEARCH, "/tokenize"])
@pytest.mark.parametrize(("body", "status"), BODIES, ids=[str(n) for n in range(len(BODIES))])
def test_body(layered: Layered, path: str, body: bytes, status: int) -> None:
    with layered.http() as client:
        _check(client.post(path, content=body, headers=JSON), status)
        assert client.get("/health").status_code == 200
    assert layered.watched.scopes == []


def test_every_depth_of_nesting_is_answered(layered: Layered) -> None:
    """Each reader and writer of JSON runs out of stack at another depth; none may become a server error."""
    statuses = {}
    with layered.http() as client:
        for depth in (1, 100, 250, 256, 300, 600, *range(850, 1000, 10), 5000):
            value = "[" * depth + "]" * depth
            body = '{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "x": ' + value + "}"
            response = client.post(CHAT, content=body.encode(), headers=JSON)
            statuses[depth] = response.status_code
    assert {depth for depth, status in statuses.items() if status == 200} == {1, 100, 250}
    assert set(statuses.values()) == {200, 400}


@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_content_type(layered: Layered, given: str) -> None:
    with layered.http() as client:
        message = _check(client.post(CHAT, content=b"{}", headers={"content-type": given}), 415)
    assert "application/json" in message


def test_content_type_with_parameters(layered: Layered) -> None:
    body = json.dumps({"model": "tiny", "messages": USER}).encode()
    with layered.http() as client:
        given = {"content-type": "Application/JSON; charset=utf-8"}
        assert client.post(CHAT, content=body, headers=given).status_code == 200


def test_compressed_bodies_are_refused(layered: Layered) -> None:
    body = json.dumps({"model": "tiny", "messages": USER}).encode()
    with layered.http() as client:
        _check(client.post(CHAT, content=body, headers={**JSON, "content-encoding": "gzip"}), 415)


def test_body_over_the_limit_without_a_length(layered: Layered) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"model": "tiny", "user": "'
        for _ in range(2 * MAX_BODY_BYTES // 4096):
            yield b"x" * 4096
        yield b'"}'

    address = urlsplit(layered.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    try:
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        try:
            for piece in pieces():
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
        except OSError:
            pass  # the server has hung up on the rest, as it may
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "request_too_large"
    finally:
        connection.close()
    assert layered.engine.state.requests == []


def test_body_at_the_limit(layered: Layered) -> None:
    body = json.dumps({"model": "tiny", "messages": USER, "user": ""}).encode()
    padded = body.replace(b'"user": ""', b'"user": "' + b"x" * (MAX_BODY_BYTES - len(body)) + b'"')
    assert len(padded) == MAX_BODY_BYTES
    with layered.http() as client:
        assert client.post(CHAT, content=padded, headers=JSON).status_code == 200
        _check(client.post(CHAT, content=padded + b" ", headers=JSON), 413)


def test_nul_characters(layered: Layered) -> None:
    assert layered.post(SEARCH, {"query": "cable\0ship"}).status_code == 200
    assert layered.chat({"messages": [{"role": "user", "content": "cable\0ship"}], **ALIAS}).status_code == 200
    wanted = {"type": "eq", "key": "to\0pic", "value": "na\0ture"}
    assert layered.post(SEARCH, {"query": "cable", "filters": wanted}).json()["data"] == []
    _check(layered.post("/v1/vector_stores/a%00b/search", {"query": "x"}), 404)
    _check(layered.chat({"messages": USER, "model": "tiny@\0"}), 404)


def test_unknown_stores(layered: Layered) -> None:
    assert "atlas" in _check(layered.post("/v1/vector_stores/nope/search", {"query": "x"}), 404)
    _check(layered.chat({"messages": USER, "vector_store_ids": ["nope"]}), 404, "vector_store_ids")
    _check(layered.chat({"messages": USER, "tools": [{"type": "file_search", "vector_store_ids": ["nope"]}]}), 404)


def test_a_prompt_that_cannot_fit(layered: Layered) -> None:
    long = [{"role": "user", "content": "word " * 6000}]
    response = layered.chat({"messages": long, **ALIAS, "max_tokens": 4000})
    assert "context is 8192 tokens" in _check(response, 400, "messages")
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert layered.engine.state.requests == []
    assert layered.chat({"messages": long, **ALIAS, "max_tokens": 1000}).status_code == 200


def test_the_engines_own_refusals_are_shaped(layered: Layered) -> None:
    tool = {"type": "retrieval"}
    assert "function" in _check(layered.chat({"messages": USER, "tools": [tool]}), 400)
    stream = layered.chat({"messages": USER, "tools": [tool], "stream": True})
    _check(stream, 400)
    layered.engine.state.error = (503, "the engine is paused")
    assert _check(layered.chat({"messages": USER}), 503) == "the engine is paused"
    assert _check(layered.chat({"messages": USER, "stream": True, **ALIAS}), 503) == "the engine is paused"


def test_file_search_elsewhere_is_refused(layered: Layered) -> None:
    body = {"model": "tiny", "input": "x", "tools": [{"type": "file_search", "vector_store_ids": ["atlas"]}]}
    _check(layered.post("/v1/responses", body), 400, "tools")
    assert layered.engine.state.paths == []


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "1.5", "²", "٣", "9" * 5000])
def test_list_limit(layered: Layered, limit: str) -> None:
    with layered.http() as client:
        _check(client.get("/v1/vector_stores", params={"limit": limit}), 400, "limit")


def test_a_server_that_shuts_down_says_so(layered: Layered) -> None:
    layered.retriever.close()
    response = layered.chat({"messages": USER, **ALIAS})
    _check(response, 503)
    assert response.headers["retry-after"] == "1"
