"""What a client hears while it waits for its turn, and when it does not come."""

import json
from typing import Any

import pytest
from starlette.types import Message

from rag_stack.api.auth import CALLER
from rag_stack.api.entrance import PatientStream, ask_of
from rag_stack.api.fair_queue import Ask
from rag_stack.errors import OverloadedError

EVENTS = [(b"content-type", b"text/event-stream")]


class Sent(list[Message]):
    """What left."""

    async def __call__(self, message: Message) -> None:
        self.append(message)

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self if message["type"] == "http.response.start"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self)


def start(status: int = 200, headers: Any = EVENTS) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


async def test_a_stream_that_waited_goes_on_with_its_answer() -> None:
    sent = Sent()
    stream = PatientStream(sent)
    await stream.beat()
    await stream.beat()
    await stream(start())
    await stream({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    assert sent.statuses == [200], "the status goes out once"
    assert sent.body == b": waiting\n\n" * 2 + b"data: [DONE]\n\n"


async def test_a_refusal_after_a_sign_of_life_is_an_error_frame() -> None:
    sent = Sent()
    stream = PatientStream(sent)
    await stream.beat()
    await stream(start(400, [(b"content-type", b"application/json")]))
    await stream({"type": "http.response.body", "body": b'{"error": {"message": "no"', "more_body": True})
    await stream({"type": "http.response.body", "body": b"}}"})
    frame = sent.body.removeprefix(b": waiting\n\n").removeprefix(b"data: ")
    assert sent.statuses == [200]
    assert json.loads(frame)["error"] == {"message": "no", "type": "server_error", "param": None, "code": 400}


async def test_an_answer_that_did_not_wait_passes_unchanged() -> None:
    sent = Sent()
    stream = PatientStream(sent)
    await stream(start(400, []))
    await stream({"type": "http.response.body", "body": b"no"})
    assert (sent.statuses, sent.body, stream.streaming) == ([400], b"no", False)


async def test_an_error_ends_a_stream_that_has_begun() -> None:
    sent = Sent()
    stream = PatientStream(sent)
    await stream(start())
    assert stream.streaming
    await stream.fail(OverloadedError("full"))
    assert json.loads(sent.body.removeprefix(b"data: "))["error"]["code"] == "overloaded"
    assert not sent[-1].get("more_body", False)


@pytest.mark.parametrize(
    ("body", "tokens", "sequences"),
    [
        ({"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50}, 150, 1),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}], "n": 3}, 10 + 3 * 256, 3),
        ({"prompt": ["x" * 40, "y" * 40], "max_tokens": 5, "n": 2}, 20 + 20, 4),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, 8, 1),
        ({"input": "x" * 8, "max_output_tokens": 7}, 9, 1),
        ({"messages": "nonsense", "max_tokens": "many", "n": True}, 256, 1),
    ],
)
def test_what_a_request_asks_for(body: dict[str, Any], tokens: int, sequences: int) -> None:
    assert ask_of({CALLER: "key"}, body) == Ask("key", tokens, sequences)
