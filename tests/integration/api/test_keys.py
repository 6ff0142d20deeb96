"""Keys, request ids, and what the engine is told of a request's headers."""

import pytest
from openai import AuthenticationError

from rag_stack.api.rag_layer import PASSED
from tests.integration.api.conftest import OpenLayer
from tests.integration.api.layered import Layered

KEYS = ("first-key", "second-key")
USER = [{"role": "user", "content": "hello"}]
GUARDED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/v1/vector_stores"),
    ("GET", "/v1/vector_stores/atlas"),
    ("POST", "/v1/vector_stores/atlas/search"),
    ("GET", "/nothing"),
    ("GET", "/metrics"),
    ("OPTIONS", "/v1/models"),
    ("GET", "/health/"),
    ("GET", "//health"),
    ("GET", "/ready/x"),
    *PASSED,
]


@pytest.fixture
def locked(open_layer: OpenLayer) -> Layered:
    return open_layer(keys=KEYS)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer first-key,second-key",
        "Bearer first-keyx",
        "bearer FIRST-KEY",
        "Basic first-key",
        "first-key",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 10_000,
    ],
)
def test_wrong_keys(locked: Layered, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    with locked.http() as client:
        response = client.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert "first-key" not in response.text


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_route_asks_for_a_key(locked: Layered, method: str, path: str) -> None:
    with locked.http() as client:
        assert client.request(method, path).status_code == 401
    assert locked.watched.scopes == []


def test_health_asks_for_none(locked: Layered) -> None:
    with locked.http() as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_the_official_client_with_a_key(locked: Layered, key: str) -> None:
    with locked.openai(key=key) as client:
        assert client.chat.completions.create(model="tiny", messages=USER).choices
        assert [model.id for model in client.models.list()] == ["tiny", "tiny@atlas", "tiny@kitchen"]


def test_the_official_client_without_a_key(locked: Layered) -> None:
    with locked.openai(key="wrong") as client, pytest.raises(AuthenticationError) as raised:
        client.chat.completions.create(model="tiny", messages=USER)
    assert raised.value.code == "invalid_api_key"
    assert raised.value.request_id


def test_without_keys_everybody_may_call(layered: Layered) -> None:
    assert layered.chat({"messages": USER}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/nothing", "/v1/chat/completions", "/health"])
def test_request_ids(layered: Layered, path: str) -> None:
    with layered.http() as client:
        mine = client.get(path, headers={"x-request-id": "My_own.id:7-b"}).headers.get_list("x-request-id")
        assert mine == ["My_own.id:7-b"]
        made = {client.get(path).headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3
        for bad in (b"a b", b"", b"x" * 129, b"\xff", b"<script>", b"a\tb"):
            [given] = client.get(path, headers={"x-request-id": bad}).headers.get_list("x-request-id")
            assert given.startswith("req_")


def test_the_engine_is_told_the_same_id(layered: Layered) -> None:
    stream = layered.chat({"messages": USER, "stream": True}, headers={"x-request-id": "mine-1"})
    assert stream.headers["x-request-id"] == layered.watched.headers()["x-request-id"] == "mine-1"
    answer = layered.chat({"messages": USER}, headers={"x-request-id": "not valid"})
    assert answer.headers["x-request-id"] == layered.watched.headers()["x-request-id"] != "not valid"


def test_the_engine_is_told_no_secrets_and_takes_no_orders(locked: Layered) -> None:
    headers = {
        "authorization": "Bearer first-key",
        "cookie": "session=1",
        "x-data-parallel-rank": "1",
        "priority": "-100",
        "x-session-id": "another's",
        "x-forwarded-for": "10.0.0.1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    for path, body in (
        ("/v1/chat/completions", {"model": "tiny", "messages": USER}),
        ("/tokenize", {"prompt": "hello"}),
    ):
        assert locked.post(path, body, headers=headers).status_code == 200
        told = locked.watched.headers()
        assert set(told) == {
            "accept", "content-length", "content-type", "traceparent", "user-agent", "x-request-id",
        }  # fmt: skip
    with locked.http() as client:
        client.get("/version", headers=headers)
    assert not {"authorization", "cookie"} & locked.watched.headers().keys()
