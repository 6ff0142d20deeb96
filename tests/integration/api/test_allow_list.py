"""Deny by default: what the layer does not name cannot be reached, however it is spelled."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api.rag_layer import DENIED, PASSED
from rag_stack.metrics import REQUESTS
from tests.engine import build_engine
from tests.integration.api.conftest import OpenLayer
from tests.integration.api.layered import Layered

OURS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"}
ENGINE_PATHS = {route.path for route in build_engine().routes}
CLOSED = sorted((ENGINE_PATHS | DENIED) - OURS - {path for _, path in PASSED})
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def _raw(
    layered: Layered, method: str, target: str, *, body: bytes = b"{}", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """A request whose target goes out exactly as it is written."""
    address = urlsplit(layered.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        text = response.read()
        told = {k.lower(): v for k, v in response.getheaders()}
        return response.status, told, json.loads(text) if text and told["content-type"] == "application/json" else None
    finally:
        connection.close()


def test_the_closed_routes_are_the_dangerous_ones() -> None:
    assert {"/metrics", "/scale_elastic_ep", "/invocations", "/docs", "/openapi.json", "/load"} <= set(CLOSED)


@pytest.mark.parametrize("path", CLOSED)
def test_closed(layered: Layered, path: str) -> None:
    for method in METHODS:
        status, headers, body = _raw(layered, method, path)
        assert status == 404, (method, path)
        assert headers["x-request-id"]
        if method != "HEAD":
            assert body["error"]["code"] == "not_found"
    assert layered.watched.scopes == []


CHAT = b'{"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}'


@pytest.mark.parametrize(
    "target",
    [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/..",
        "/v1/../metrics",
        "/v1/chat/completions/../../../metrics",
        "/v1/%2e%2e/metrics",
        "/v1/..%2fmetrics",
        "/%6detrics",
        "/metrics%00",
        "/metrics;a=b",
        "/metrics?x=/v1/models",
        "/metrics#/v1/models",
        "/METRICS",
        "/./metrics",
        "/v1/models/../../metrics",
        "/v1/models/%2e%2e%2f%2e%2e%2fmetrics",
        "/v1/vector_stores/../../metrics",
        "/v1/vector_stores/atlas%2fsearch/x",
        "/v1/chat/completions%2f",
        "/V1/chat/completions",
        "/v1/chat\\completions",
        "/%76%31/scale_elastic_ep",
        "http://other.example/metrics",
        "*",
    ],
)
def test_path_tricks(layered: Layered, target: str) -> None:
    for method in ("GET", "POST"):
        status, _, body = _raw(layered, method, target, body=CHAT)
        # 405 where the model or store that nobody has is asked for with POST; 400 where uvicorn refuses the target.
        assert status in (404, 405) or (status == 400 and target == "*"), (method, target, body)
    assert layered.watched.scopes == []


def test_headers_do_not_choose_the_route(layered: Layered) -> None:
    tricks = {"X-Original-URL": "/v1/models", "X-Rewrite-URL": "/v1/models", "X-HTTP-Method-Override": "GET"}
    tricks |= {"X-Forwarded-Prefix": "/metrics", "X-Forwarded-For": "127.0.0.1"}
    status, _, _ = _raw(layered, "POST", "/metrics", **tricks)
    assert status == 404
    assert layered.watched.scopes == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/chat/completions"),
        ("HEAD", "/v1/chat/completions"),
        ("OPTIONS", "/v1/completions"),
        ("POST", "/v1/models"),
        ("DELETE", "/v1/models/tiny"),
        ("POST", "/v1/vector_stores"),
        ("DELETE", "/v1/vector_stores/atlas"),
        ("GET", "/v1/vector_stores/atlas/search"),
        ("POST", "/health"),
        ("POST", "/version"),
        ("GET", "/tokenize"),
        ("PROPFIND", "/v1/models"),
    ],
)
def test_method_not_allowed(layered: Layered, method: str, path: str) -> None:
    status, headers, body = _raw(layered, method, path)
    assert status == 405
    assert headers["content-type"] == "application/json"
    if method != "HEAD":
        assert body["error"]["code"] == "method_not_allowed"
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert layered.watched.scopes == []


def test_unknown_route(layered: Layered) -> None:
    with layered.http() as client:
        response = client.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "no route GET /v1/nothing",
        "type": "not_found_error",
        "param": None,
        "code": "not_found",
    }


def test_allowed_routes_of_the_engine(layered: Layered) -> None:
    tokens = layered.post("/tokenize", {"prompt": "hello there"}).json()["tokens"]
    assert layered.post("/detokenize", {"tokens": tokens}).json() == {"prompt": "hello there"}
    with layered.http() as client:
        assert client.get("/version").json() == {"version": "0.29.0"}
        assert client.head("/version").status_code == 200
        assert client.head("/health").status_code == 200


class _Mounted:
    """As Ray Serve mounts an app: the prefix in `root_path`, and in `path` too or not."""

    def __init__(self, app: ASGIApp, *, prefix: str, stripped: bool) -> None:
        self._app, self._prefix, self._stripped = app, prefix, stripped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(self._prefix) if self._stripped else scope["path"]
            scope = {**scope, "root_path": self._prefix, "path": path}
        await self._app(scope, receive, send)


@pytest.mark.parametrize("stripped", [False, True])
def test_mounted_under_a_prefix(open_layer: OpenLayer, stripped: bool) -> None:
    for prefix, path in (("/v1/vector_stores", "/v1/vector_stores"), ("/v1/models", "/v1/models/tiny")):
        layered = open_layer(around=lambda app, prefix=prefix: _Mounted(app, prefix=prefix, stripped=stripped))
        with layered.http() as client:
            assert client.get(path).status_code == 200
            assert client.get(f"{prefix}/nope/nope").status_code == 404
    layered = open_layer(around=lambda app: _Mounted(app, prefix="/v1/vector_stores", stripped=stripped))
    assert layered.post("/v1/vector_stores/atlas/search", {"query": "cable"}).json()["data"]


def test_the_engine_sees_whole_paths_and_no_router_of_ours(layered: Layered) -> None:
    layered.chat({"messages": [{"role": "user", "content": "hello"}]})
    [scope] = layered.watched.scopes
    assert (scope["path"], scope["root_path"]) == ("/v1/chat/completions", "")
    assert scope["app"] is layered.engine
    assert layered.engine.state.paths == ["/v1/chat/completions"]


def test_metrics_hold_no_made_up_labels(layered: Layered) -> None:
    with layered.http() as client:
        client.get("/made/up")
        client.get("/v1/models/made-up")
    values = layered.recorder.values
    assert values(REQUESTS, {"route": "other", "status": "404"}) == [1]
    assert values(REQUESTS, {"route": "/v1/models/{model:path}", "status": "404"}) == [1]
