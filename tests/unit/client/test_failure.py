"""What goes wrong between a client and a server, and what the caller sees of it."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from starlette.applications import Starlette

from rag_stack import errors
from rag_stack.client import Client
from tests.scripted import Reply, build_scripted
from tests.servers import closed_port, serve

Call = Callable[..., Any]
MODELS = {"GET /v1/models": Reply({"object": "list", "data": [{"id": "m"}]})}
CHAT = "POST /v1/chat/completions"
RAG = {"release": "r", "sources": [], "citations": []}


def error(code: object, *, kind: str = "t", message: str = "said why") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": "p", "code": code}}


def chunk(content: str, *, finish_reason: str | None = None, **extra: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **extra}


@pytest.mark.parametrize(
    ("reply", "expected", "message"),
    [
        (Reply(error("invalid_value"), status=400), errors.InvalidRequestError, "said why"),
        (Reply(error("context_length_exceeded"), status=400), errors.ContextLengthError, "said why"),
        (Reply(error(400, kind="BadRequestError"), status=400), errors.InvalidRequestError, "said why"),
        (Reply(error("invalid_api_key"), status=401), errors.AuthenticationError, "said why"),
        (Reply(error(404, kind="NotFoundError"), status=404), errors.NotFoundError, "said why"),
        (Reply("Not Found", status=404), errors.NotFoundError, "is base_url"),
        (Reply(error("method_not_allowed"), status=405), errors.MethodNotAllowedError, "said why"),
        (Reply(error("request_too_large"), status=413), errors.PayloadTooLargeError, "said why"),
        (Reply(error("overloaded"), status=429), errors.OverloadedError, "said why"),
        (Reply(error("unavailable"), status=503), errors.UnavailableError, "said why"),
        (Reply(error("engine_error"), status=502), errors.EngineError, "said why"),
        (Reply(error("internal_error"), status=500, headers={"x-request-id": "req_1"}), errors.RagStackError, "req_1"),
        (Reply("Internal Server Error", status=500), errors.UnavailableError, "no replica"),
        (Reply("Bad Gateway", status=502), errors.UnavailableError, "no replica"),
        (Reply("Service Unavailable", status=503), errors.UnavailableError, "no replica"),
        (Reply("Gateway Timeout", status=504), errors.UnavailableError, "no replica"),
    ],
)
def test_a_refusal_is_one_of_our_errors(
    call: Call, reply: Reply, expected: type[errors.RagStackError], message: str
) -> None:
    with serve(build_scripted({**MODELS, CHAT: reply})) as url:
        for method in ("ask", "stream"):
            with pytest.raises(errors.RagStackError) as caught:
                call(url, method, "q")
            assert type(caught.value) is expected
            assert message in caught.value.message
            assert isinstance(caught.value.__cause__, openai.APIStatusError)


@pytest.mark.parametrize(
    ("header", "expected"), [("7", 7), ("0.2", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("nan", None)]
)
def test_retry_after_is_told(call: Call, header: str, expected: int | None) -> None:
    reply = Reply(error("overloaded"), status=429, headers={"retry-after": header})
    with serve(build_scripted({**MODELS, CHAT: reply})) as url, pytest.raises(errors.OverloadedError) as caught:
        call(url, "ask", "q")
    assert caught.value.retry_after_s == expected


def test_an_overloaded_server_is_asked_again(call: Call) -> None:
    refused = Reply(error("overloaded"), status=429, headers={"retry-after-ms": "1"})
    message = {"role": "assistant", "content": "yes"}
    answered = Reply({"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "rag": RAG})
    app = build_scripted({**MODELS, CHAT: [refused, answered]})
    with serve(app) as url:
        assert call(url, "ask", "q", settings={"max_retries": 1}).text == "yes"
    assert [received.route for received in app.state.received].count(CHAT) == 2


def test_nobody_listens(call: Call) -> None:
    for method in ("ask", "stream", "search", "models", "stores"):
        args = () if method in ("models", "stores") else ("q",)
        url = f"http://127.0.0.1:{closed_port()}"
        with pytest.raises(errors.UnavailableError, match="rag-stack serve") as caught:
            call(url, method, *args)
        assert url in caught.value.message
        assert isinstance(caught.value.__cause__, openai.APIConnectionError)


def test_a_server_that_does_not_answer_in_time(call: Call, engine: Starlette, layer_url: str) -> None:
    engine.state.stall_after_chunks = 0
    with pytest.raises(errors.UnavailableError, match="in time"):
        call(layer_url, "ask", "q", settings={"timeout": 0.3})
    assert engine.state.aborted.wait(10)


def test_a_stream_that_stalls(call: Call, engine: Starlette, layer_url: str) -> None:
    engine.state.stall_after_chunks = 2
    with pytest.raises(errors.UnavailableError):
        call(layer_url, "stream", "q", settings={"timeout": 0.3})
    assert engine.state.aborted.wait(10)


@pytest.mark.parametrize("after", [0, 3])
def test_an_engine_that_fails_in_the_middle(call: Call, engine: Starlette, layer_url: str, after: int) -> None:
    engine.state.fail_after_chunks = after
    with pytest.raises(errors.RagStackError, match="the engine failed"):
        call(layer_url, "stream", "q")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (error("engine_error"), errors.EngineError),
        (error("unavailable"), errors.UnavailableError),
        (error("context_length_exceeded"), errors.ContextLengthError),
        (error(500, kind="InternalServerError"), errors.EngineError),
        (error(503), errors.UnavailableError),
        (error(None), errors.EngineError),
        ({"error": "just text"}, errors.EngineError),
    ],
)
def test_an_error_frame_is_one_of_our_errors(call: Call, frame: Any, expected: type[errors.RagStackError]) -> None:
    frames = [chunk("begun", rag=RAG), frame]
    with serve(build_scripted({**MODELS, CHAT: Reply(frames=frames)})) as url, pytest.raises(expected) as caught:
        call(url, "stream", "q")
    assert type(caught.value) is expected


def test_a_connection_that_breaks_in_the_middle(call: Call, engine: Starlette, engine_url: str) -> None:
    engine.state.crash_after_chunks = 2
    with pytest.raises(errors.UnavailableError, match="broke in the middle"):
        call(engine_url, "stream", "say: a longer answer")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "ended before"),
        ([chunk("half", rag=RAG)], "ended before"),
        ([chunk("half", rag=RAG), "[DONE]"], "ended before"),
        ([chunk("whole", finish_reason="stop")], "not a rag_stack server"),
        (["{broken"], "not JSON"),
        ([{"unknown": 1}], "not what a rag_stack server sends"),
        (["[1, 2]"], "not what a rag_stack server sends"),
    ],
)
def test_a_stream_that_is_none_of_ours(call: Call, frames: Any, message: str) -> None:
    with (
        serve(build_scripted({**MODELS, CHAT: Reply(frames=frames)})) as url,
        pytest.raises(errors.EngineError, match=message),
    ):
        call(url, "stream", "q")


@pytest.mark.parametrize(
    "reply",
    [
        Reply("<html>hello</html>"),
        Reply({}),
        Reply({"model": "m", "choices": []}),
        Reply({"model": "m", "choices": [{"index": 0}]}),
        Reply({"model": "m", "choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}),
        Reply({"model": "m", "choices": [{"index": 0, "message": {"content": 3}}], "rag": RAG}),
        Reply({"model": "m", "choices": [{"index": 0, "message": {"content": "x"}}], "rag": {"sources": 1}}),
    ],
)
def test_an_answer_that_is_none_of_ours(call: Call, reply: Reply) -> None:
    with serve(build_scripted({**MODELS, CHAT: reply})) as url, pytest.raises(errors.EngineError):
        call(url, "ask", "q")


def test_a_plain_engine_is_told_apart(call: Call, engine_url: str) -> None:
    for method in ("ask", "stream"):
        with pytest.raises(errors.EngineError, match="not a rag_stack server"):
            call(engine_url, method, "say: hello")


def test_a_server_without_models(call: Call) -> None:
    app = build_scripted({"GET /v1/models": Reply({"object": "list", "data": []})})
    with serve(app) as url, pytest.raises(errors.EngineError, match="lists no model"):
        call(url, "ask", "q")


def test_a_server_whose_list_never_ends(call: Call) -> None:
    app = build_scripted({"GET /v1/vector_stores": Reply({"object": "list", "data": [], "has_more": True})})
    with serve(app) as url:
        assert call(url, "stores") == ()


def test_what_openai_keeps_in_the_environment_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "private")
    app = build_scripted(MODELS)
    with serve(app) as url, Client(base_url=url) as client:
        client.models()
    (received,) = app.state.received
    assert "private" not in str(received.headers)
