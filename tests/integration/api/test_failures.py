"""Bad days: the engine fails, clients go away, too many ask at once."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from openai import APIError, InternalServerError, RateLimitError
from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.metrics import REQUESTS, RETRIEVAL_QUEUE
from rag_stack.retrieval.embedder import Embedder
from tests.integration.api.conftest import OpenLayer
from tests.integration.api.layered import WAIT_S, HeldEmbedder, Layered, Streamed

USER: list[Any] = [{"role": "user", "content": "cable\nsay: A long answer in many small pieces."}]
ASK: dict[str, Any] = {"model": "tiny@atlas", "messages": USER}


@pytest.fixture
def held(embedder: Embedder) -> Iterator[HeldEmbedder]:
    """An embedder behind a door; the door is opened when the test ends, so that no thread stays behind."""
    door = HeldEmbedder(embedder)
    yield door
    door.open.set()


@pytest.mark.parametrize("model", ["tiny", "tiny@atlas"])
def test_an_error_frame_of_the_engine(layered: Layered, model: str) -> None:
    layered.engine.state.fail_after_chunks = 3
    stream = Streamed.of(layered.chat({**ASK, "model": model, "stream": True}))
    failed = stream.chunks[-1]
    assert set(failed["error"]) >= {"message", "type", "param", "code"}
    assert failed["error"]["message"] == "the engine failed"
    assert len(stream.chunks) == 5
    with layered.openai() as client, pytest.raises(APIError, match="the engine failed"):
        list(client.chat.completions.create(model=model, messages=USER, stream=True))


@pytest.mark.parametrize("model", ["tiny", "tiny@atlas"])
def test_a_crash_of_the_engine_in_the_middle(layered: Layered, model: str) -> None:
    layered.engine.state.crash_after_chunks = 3
    response = layered.chat({**ASK, "model": model, "stream": True})
    frames = [frame for frame in response.text.split("\n\n") if frame]
    assert '"error"' in frames[-1]
    assert "RuntimeError" not in response.text
    with layered.openai() as client, pytest.raises(APIError, match="in the middle of an answer"):
        list(client.chat.completions.create(model=model, messages=USER, stream=True))
    layered.engine.state.crash_after_chunks = None
    assert layered.chat(ASK).status_code == 200


def test_a_crash_behind_the_answer_leaves_it_its_end(layered: Layered) -> None:
    layered.engine.state.chunk_chars, layered.engine.state.crash_after_chunks = 10_000, 1
    stream = Streamed.of(layered.chat({"model": "tiny@atlas", **ASK, "stream": True}))
    end, error = stream.chunks[-2:]
    assert end["choices"][0]["finish_reason"] == "stop"
    assert end["rag"]["sources"]
    assert "error" in error


@pytest.mark.parametrize("model", ["tiny", "tiny@atlas"])
def test_a_first_frame_that_is_an_error_keeps_its_status(layered: Layered, model: str) -> None:
    layered.engine.state.fail_after_chunks = 0
    response = layered.chat({**ASK, "model": model, "stream": True})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["message"] == "the engine failed"
    assert response.headers.get_list("x-request-id")
    with layered.openai() as client, pytest.raises(InternalServerError, match="the engine failed"):
        client.chat.completions.create(model=model, messages=USER, stream=True)


def test_a_refusal_of_the_engine_keeps_its_status(layered: Layered) -> None:
    layered.engine.state.error = (500, "no memory")
    for stream in (True, False):
        response = layered.chat({**ASK, "stream": stream})
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "no memory"


class _Says:
    """An engine that says what it must not."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self._body, self._content_type = body, content_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", self._content_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


@pytest.mark.parametrize("body", [b"", b"not JSON", b"[]", b'"text"', b"\xff"])
@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_an_engine_that_speaks_another_protocol(
    indexes: Any, open_layer: OpenLayer, body: bytes, content_type: str
) -> None:
    data = body if content_type == "application/json" else b"data: " + body + b"\n\n"
    layered = open_layer()
    layered.watched._app = _Says(data, content_type)
    response = layered.chat(ASK)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "engine_error"


def test_a_client_that_leaves_a_stream_aborts_the_generation(layered: Layered) -> None:
    layered.engine.state.stall_after_chunks = 2
    with layered.openai() as client:
        stream = client.chat.completions.create(**ASK, stream=True)
        assert next(iter(stream)).choices
        stream.close()
        assert layered.engine.state.aborted.wait(WAIT_S)


def test_a_client_that_leaves_before_a_whole_answer_aborts_it(layered: Layered) -> None:
    layered.engine.state.stall_after_chunks = 0
    reached = threading.Event()
    app = layered.watched._app
    layered.watched._app = _announcing(app, reached)
    with _asking(layered) as connection:
        assert reached.wait(WAIT_S)
        connection.close()
        assert layered.engine.state.aborted.wait(WAIT_S)


def _announcing(app: ASGIApp, reached: threading.Event) -> ASGIApp:
    async def announced(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()
        await app(scope, receive, send)

    return announced


def _asking(layered: Layered, path: str = "/v1/chat/completions", body: bytes | None = None) -> socket.socket:
    """A connection on which a question has been sent and no answer read."""
    address = urlsplit(layered.url)
    body = body or b'{"model": "tiny@atlas", "messages": [{"role": "user", "content": "cable"}]}'
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=WAIT_S)
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", None), ("/v1/vector_stores/atlas/search", b'{"query": "cable"}')],
)
def test_a_client_that_leaves_while_its_search_waits(
    open_layer: OpenLayer, held: HeldEmbedder, path: str, body: bytes | None
) -> None:
    ended = _Ended()
    layered = open_layer(embedder=held, queue=1, around=ended.around)
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(layered.chat, ASK)
        assert held.entered.acquire(timeout=WAIT_S)
        waits = _asking(layered, path, body)
        assert _eventually_full(layered)
        waits.close()
        # Its place is free again although the search before it still stands at the door.
        assert ended.one.acquire(timeout=WAIT_S)
        assert layered.recorder.values(RETRIEVAL_QUEUE)[-1] == 1
        held.open.set()
        assert runs.result(WAIT_S).status_code == 200
    assert layered.recorder.values(RETRIEVAL_QUEUE)[-1] == 0
    assert len(layered.engine.state.requests) == 1, "the engine was not asked for the client that left"
    assert held.entered.acquire(blocking=False) is False, "nothing was embedded for the client that left"


class _Ended:
    """Tells when a request has been dealt with."""

    def __init__(self) -> None:
        self.one = threading.Semaphore(0)

    def around(self, app: ASGIApp) -> ASGIApp:
        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            finally:
                if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] != "/tokenize":
                    self.one.release()

        return counted


def _eventually_full(layered: Layered) -> bool:
    """Whether two searches are held. A request through the server after the other one has been read by it."""
    with layered.http() as client:
        for _ in range(2000):
            if layered.recorder.values(RETRIEVAL_QUEUE)[-1] == 2:
                return True
            client.get("/health")
    return False


def test_overload_is_429_with_retry_after(open_layer: OpenLayer, held: HeldEmbedder) -> None:
    layered = open_layer(embedder=held, queue=1)
    with ThreadPoolExecutor(2) as pool:
        runs = pool.submit(layered.chat, ASK)
        assert held.entered.acquire(timeout=WAIT_S)
        waits = pool.submit(layered.post, "/v1/vector_stores/atlas/search", {"query": "cable"})
        assert _eventually_full(layered)
        for refused in (
            layered.chat(ASK),
            layered.chat({**ASK, "stream": True}),
            layered.post("/v1/vector_stores/atlas/search", {"query": "cable"}),
        ):
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 60
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
        with layered.openai() as client, pytest.raises(RateLimitError):
            client.chat.completions.create(**ASK)
        assert layered.chat({"model": "tiny", "messages": USER}).status_code == 200, "no search, no queue"
        held.open.set()
        assert runs.result(WAIT_S).status_code == waits.result(WAIT_S).status_code == 200
    assert layered.recorder.values(RETRIEVAL_QUEUE)[-1] == 0


def test_the_event_loop_is_free_while_a_search_runs(open_layer: OpenLayer, held: HeldEmbedder) -> None:
    layered = open_layer(embedder=held)
    with ThreadPoolExecutor(1) as pool:
        search = pool.submit(layered.chat, ASK)
        assert held.entered.acquire(timeout=WAIT_S)
        with layered.http() as client:
            assert client.get("/health").status_code == 200
        plain = layered.chat({"model": "tiny", "messages": USER, "stream": True})
        assert Streamed.of(plain).done
        assert not search.done()
        held.open.set()
        assert search.result(WAIT_S).status_code == 200


def test_the_event_loop_is_free_while_a_prompt_is_counted(open_layer: OpenLayer) -> None:
    layered = open_layer()
    entered, opened = threading.Event(), threading.Event()
    count: Callable[[Any], int] = layered.engine.state.vocabulary.count

    def held_count(messages: Any) -> int:
        entered.set()
        assert opened.wait(WAIT_S)
        return count(messages)

    layered.engine.state.vocabulary.count = held_count
    long = [{"role": "user", "content": "word " * 4000}]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(layered.chat, {"model": "tiny@atlas", "messages": long})
        assert entered.wait(WAIT_S)
        with layered.http() as client:
            assert client.get("/health").status_code == 200
        opened.set()
        assert asked.result(WAIT_S).status_code == 200


def test_half_a_request_is_no_error(layered: Layered) -> None:
    address = urlsplit(layered.url)
    ended = layered.recorder.values
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=WAIT_S) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
    with layered.http() as client:
        for _ in range(2000):
            if ended(REQUESTS, {"route": "/v1/chat/completions", "status": "0"}):
                break
            client.get("/health")
    assert ended(REQUESTS, {"route": "/v1/chat/completions", "status": "0"}) == [1]
    assert isinstance(layered.chat(ASK), httpx.Response)
