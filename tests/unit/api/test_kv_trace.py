"""The recorder before an engine: what it writes, what it leaves out, and that no request waits for it."""

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api.ahead import ahead_of
from rag_stack.api.kv_trace import BLOCK_TOKENS, KvTraceRecorder, block_hashes, open_kv_trace
from rag_stack.releases.kv_trace import KvChains, read_trace

USAGE = {"prompt_tokens": 40, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 16}}


def words(body: Mapping[str, Any]) -> Sequence[int]:
    """A number a word of the prompt."""
    return [sum(map(ord, word)) for word in body["messages"][0]["content"].split()]


def engine(*, usage: Mapping[str, Any] | None = None, status: int = 200) -> ASGIApp:
    """Answers in a stream of three words when it is asked for one, else whole."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        stream = json.loads(body).get("stream")
        kind = b"text/event-stream" if stream else b"application/json"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        if stream:
            frames = [{"choices": [{"delta": {"content": word}}]} for word in ("a", "b", "c")]
            frames += [{"choices": [], "usage": usage}] if usage else []
            for frame in frames:
                data = f"data: {json.dumps(frame)}\n\n".encode()
                await send({"type": "http.response.body", "body": data[:9], "more_body": True})
                await send({"type": "http.response.body", "body": data[9:], "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        else:
            answer = {"choices": [{"message": {"content": "abc"}}], "usage": usage or {}}
            await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return app


async def ask(app: ASGIApp, prompt: str, *, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        return await client.post(path, json={"messages": [{"role": "user", "content": prompt}], **more})


def prompt(*, end: str) -> str:
    return " ".join([*(f"w{n}" for n in range(39)), end])


async def test_a_stream_and_a_whole_answer_are_recorded(tmp_path: Path) -> None:
    recorder = KvTraceRecorder(tmp_path / "new" / "t.jsonl", words)
    app = recorder.around(engine(usage=USAGE))
    streamed = await ask(app, prompt(end="one"), stream=True)
    assert streamed.text.count("data:") == 5, "passed on as it was"
    await ask(app, prompt(end="two"))
    await asyncio.to_thread(recorder.close)
    first, second = read_trace(recorder.path)
    assert (first.prompt_tokens, first.output[1], first.cached_tokens) == (40, 5, 16)
    assert first.ttft_s is not None
    assert first.seconds is not None
    assert first.ttft_s <= first.seconds
    assert second.ttft_s is None, "an answer in one piece has no first token"
    chains = KvChains(BLOCK_TOKENS)
    assert chains.keys(first.segments) == chains.keys(second.segments), "32 of 40 tokens are two whole blocks"
    assert "one" not in recorder.path.read_text()


async def test_without_usage_the_frames_count(tmp_path: Path) -> None:
    recorder = KvTraceRecorder(tmp_path / "t.jsonl", words)
    await ask(recorder.around(engine()), prompt(end="one"), stream=True)
    await asyncio.to_thread(recorder.close)
    (request,) = read_trace(recorder.path)
    assert (request.output[1], request.cached_tokens) == (3, None)


async def test_what_the_engine_refuses_and_other_routes_are_not_recorded(tmp_path: Path) -> None:
    recorder = KvTraceRecorder(tmp_path / "t.jsonl", words)
    await ask(recorder.around(engine(status=400)), prompt(end="one"))
    await ask(recorder.around(engine()), prompt(end="one"), path="/tokenize")
    await asyncio.to_thread(recorder.close)
    assert recorder.path.read_text() == ""


async def test_a_prompt_that_is_not_to_be_tokenized_is_left_out(tmp_path: Path) -> None:
    def fails(body: Mapping[str, Any]) -> Sequence[int]:
        if "bad" in body["messages"][0]["content"]:
            raise ValueError("no")
        return words(body)

    recorder = KvTraceRecorder(tmp_path / "t.jsonl", fails)
    app = recorder.around(engine())
    assert (await ask(app, "bad")).status_code == 200
    await ask(app, prompt(end="good"))
    await asyncio.to_thread(recorder.close)
    assert len(read_trace(recorder.path)) == 1


async def test_what_is_read_ahead_is_no_request(tmp_path: Path) -> None:
    recorder = KvTraceRecorder(tmp_path / "t.jsonl", words)
    app, asked = recorder.around(engine()), []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await app(scope, receive, send)

    scope = {"type": "http", "path": "/v1/chat/completions", "headers": [(b"x-request-id", b"one")]}
    body = {"messages": [{"role": "user", "content": prompt(end="one")}]}
    assert await ahead_of(watched, scope)(body, asyncio.Event())
    await asyncio.to_thread(recorder.close)
    assert (len(asked), recorder.path.read_text()) == (1, "")


async def test_what_waits_is_bounded_in_bytes(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(body: Mapping[str, Any]) -> Sequence[int]:
        begun.set()
        go_on.wait(30)
        return words(body)

    recorder = KvTraceRecorder(tmp_path / "t.jsonl", slow, waiting_bytes=3000)
    app = recorder.around(engine())
    await ask(app, prompt(end="x" * 1000))
    await asyncio.to_thread(begun.wait, 30)
    for _ in range(4):
        await ask(app, prompt(end="x" * 1000))
    assert recorder.left_out == 2, "two of more than 1,000 bytes wait, and a third is too much"
    go_on.set()
    await asyncio.to_thread(recorder.close)
    assert len(read_trace(recorder.path)) == 3


async def test_usage_of_another_shape_costs_its_line_alone(tmp_path: Path) -> None:
    recorder = KvTraceRecorder(tmp_path / "t.jsonl", words)
    for usage in ({"completion_tokens": "many"}, {"prompt_tokens_details": [1]}, USAGE):
        await ask(recorder.around(engine(usage=usage)), prompt(end="one"))
    await asyncio.to_thread(recorder.close)
    assert len(read_trace(recorder.path)) == 1


async def test_an_answer_of_another_shape_passes(tmp_path: Path) -> None:
    async def odd(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"choices": [1]}'})

    recorder = KvTraceRecorder(tmp_path / "t.jsonl", words)
    assert (await ask(recorder.around(odd), prompt(end="one"))).text == '{"choices": [1]}'
    await asyncio.to_thread(recorder.close)


async def test_whatever_ends_the_thread_ends_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(KvTraceRecorder, "_line", lambda self, exchange: "\ud800")
    recorder = KvTraceRecorder(tmp_path / "t.jsonl", words)
    app = recorder.around(engine())
    await ask(app, "one")
    await asyncio.to_thread(recorder.close)
    assert "no more requests are recorded" in caplog.text
    await ask(app, "two")
    await asyncio.to_thread(recorder.close)


async def test_where_it_cannot_write_answers_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    recorder = KvTraceRecorder(tmp_path / "file" / "t.jsonl", words)
    await asyncio.to_thread(recorder.close)
    assert (await ask(recorder.around(engine()), "a b c")).status_code == 200
    assert "no more requests are recorded" in caplog.text


async def test_it_ends_at_its_limit(tmp_path: Path) -> None:
    recorder = KvTraceRecorder(tmp_path / "t.jsonl", words, limit_bytes=10)
    app = recorder.around(engine())
    for _ in range(3):
        await ask(app, prompt(end="x"))
    await asyncio.to_thread(recorder.close)
    assert len(read_trace(recorder.path)) == 1


def test_hashes_are_of_all_before_and_of_the_salt() -> None:
    one, two = list(range(48)), [*range(16), 99, *range(17, 48)]
    assert len(block_hashes(one)) == 3
    assert block_hashes(one)[0] == block_hashes(two)[0]
    assert not set(block_hashes(one)[1:]) & set(block_hashes(two))
    assert not set(block_hashes(one)) & set(block_hashes(one, salt="s"))
    assert all(0 <= each < 2**53 for each in block_hashes(one))


def test_nothing_is_recorded_unless_asked(tmp_path: Path) -> None:
    assert open_kv_trace(tmp_path, {}) is None
