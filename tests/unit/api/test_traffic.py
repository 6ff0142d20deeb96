"""What is recorded of the requests that pass."""

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from rag_stack.api.traffic import Traffic
from rag_stack.metrics import ANSWERS, TTFT_SECONDS, MemoryRecorder

TARGET_S = 2.0
TOKEN, LAST = b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"message": "no"}}\n\n'


class Passing:
    """Traffic by a clock that the app behind it moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.recorder = MemoryRecorder()
        self.traffic = Traffic(ttft_target_s=TARGET_S, recorder=self.recorder, clock=lambda: self.now_s)

    async def ask(self, *steps: tuple[float, Message]) -> dict[str, float]:
        """One request, answered by messages each so many seconds after the one before; the outcomes told of it."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for after_s, message in steps:
                self.now_s += after_s
                await send(message)

        async def nobody(*_: Any) -> Any:
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
        await self.traffic.around(app)(scope, nobody, nobody)
        outcomes = ("good", "late", "failed", "refused", "aborted")
        told = {outcome: sum(self.recorder.values(ANSWERS, {"outcome": outcome})) for outcome in outcomes}
        return {outcome: count for outcome, count in told.items() if count}


@pytest.fixture
def passing() -> Passing:
    return Passing()


def start(status: int = 200, *, kind: bytes = b"text/event-stream") -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


def body(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.mark.parametrize(("first_s", "outcome"), [(1.5, "good"), (2.5, "late")])
async def test_a_streams_first_token_is_timed_and_judged_by_the_target(
    passing: Passing, first_s: float, outcome: str
) -> None:
    told = await passing.ask(
        (0.5, start()), (0.0, body(b": waiting\n\n")), (first_s - 0.5, body(TOKEN)), (60.0, body(LAST, more=False))
    )
    assert told == {outcome: 1}
    assert passing.recorder.values(TTFT_SECONDS) == [first_s]


async def test_an_answer_in_one_piece_is_judged_as_a_whole_and_has_no_first_token(passing: Passing) -> None:
    json = start(kind=b"application/json")
    assert await passing.ask((1.0, json), (0.5, body(b"{}", more=False))) == {"good": 1}
    assert passing.recorder.values(TTFT_SECONDS) == []


@pytest.mark.parametrize(
    ("messages", "outcome"),
    [
        ([start(429), body(b"{}", more=False)], "refused"),
        ([start(500), body(b"{}", more=False)], "failed"),
        ([start(), body(ERROR, more=False)], "failed"),
        ([start(), body(TOKEN)], "aborted"),
    ],
)
async def test_what_is_no_answer_says_what_it_is(passing: Passing, messages: list[Message], outcome: str) -> None:
    assert await passing.ask(*((0.0, message) for message in messages)) == {outcome: 1}


async def test_a_request_that_is_wrong_is_nobodys_failure(passing: Passing) -> None:
    assert await passing.ask((0.0, start(400)), (0.0, body(b"{}", more=False))) == {}
