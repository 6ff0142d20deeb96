"""What a client hears while it waits for its turn, and when it does not come."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from rag_stack.api.admission import Admission, Limits, is_content
from rag_stack.api.auth import CALLER
from rag_stack.api.entrance import PatientAnswer, ask_of, let_in
from rag_stack.api.fair_queue import Ask
from rag_stack.api.http import ClientDisconnectedError
from rag_stack.api.traffic import Traffic
from rag_stack.api.waiting_room import HELD_SINCE
from rag_stack.errors import EngineLostError, OverloadedError, RagStackError
from rag_stack.metrics import MemoryRecorder

EVENTS = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json"), (b"content-length", b"12"), (b"x-own", b"1")]
BODY = b'{"ok": true}'
FRAME = b"data: {}\n\n"
STREAM: Sequence[Message] = (
    {"type": "http.response.start", "status": 200, "headers": EVENTS},
    {"type": "http.response.body", "body": FRAME, "more_body": True},
    {"type": "http.response.body", "body": b"data: [DONE]\n\n"},
)


class Sent(list[Message]):
    """What left. `beats` counts the signs of life."""

    def __init__(self) -> None:
        super().__init__()
        self.beats = asyncio.Semaphore(0)
        self.beaten_s: list[float] = []

    async def __call__(self, message: Message) -> None:
        self.append(message)
        if message["type"] == "http.response.body" and not is_content(message["body"]):
            self.beats.release()
            self.beaten_s.append(asyncio.get_running_loop().time())

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self if message["type"] == "http.response.start"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self)


class Asked:
    """A request that comes to the entrance, and an engine that answers it when `answers` is set."""

    def __init__(
        self,
        admission: Admission,
        *,
        streams: bool = False,
        scope: Scope | None = None,
        status: int = 200,
        fails: Exception | None = None,
        fails_late: Exception | None = None,
    ) -> None:
        self.sent = Sent()
        self.gone, self.began, self.answers = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._admission, self._streams, self._status = admission, streams, status
        self._fails, self._fails_late = fails, fails_late
        self._scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], **(scope or {})}
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await let_in(self._admission, Ask("a", 1), scope, receive, send, streams=self._streams, answer=self._answer)

    async def ask(self, traffic: Traffic | None = None) -> None:
        app = self if traffic is None else traffic.around(self)
        await app(self._scope, self._receive, self.sent)

    async def _answer(self, send: Send, timed: Callable[[Send], Send]) -> None:
        self.began.set()
        await self.answers.wait()
        if self._fails is not None:
            raise self._fails
        for message in STREAM if self._streams else told(self._status):
            await timed(send)(message)
        if self._fails_late is not None:
            raise self._fails_late

    async def _receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def error(self) -> Any:
        """What it was told went wrong, in the last frame of its stream or in the place of its answer."""
        return json.loads(self.sent.body.rpartition(b"data: ")[2])["error"]

    async def beaten(self, times: int = 1) -> None:
        for _ in range(times):
            await asyncio.wait_for(self.sent.beats.acquire(), timeout=5)


def admission_of(*, heartbeat_s: float = 0.02, target_s: float = 100.0) -> Admission:
    limits = Limits(
        slots=1,
        queue=8,
        waiting_tokens=1000,
        target_s=target_s,
        held=8,
        held_s=900.0,
        heartbeat_s=heartbeat_s,
    )
    return Admission(limits, recorder=MemoryRecorder())


@asynccontextmanager
async def busy(admission: Admission) -> AsyncIterator[asyncio.Event]:
    """Somebody else has the engine, until the event is set."""
    other = Asked(admission)
    other.task = asyncio.create_task(other.ask())
    await other.began.wait()
    yield other.answers
    other.answers.set()
    await other.task


def start(status: int = 200, headers: Any = EVENTS) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def told(status: int = 200) -> Sequence[Message]:
    return [start(status, JSON), {"type": "http.response.body", "body": BODY}]


def patient(read_timeout_s: float) -> Scope:
    """A client that says how long it waits for the next byte."""
    return {"headers": [(b"x-stainless-read-timeout", str(read_timeout_s).encode())]}


async def test_a_stream_that_waited_goes_on_with_its_answer() -> None:
    sent = Sent()
    stream = PatientAnswer(sent, streams=True)
    await stream.beat()
    await stream.beat()
    await stream(start())
    await stream({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    assert sent.statuses == [200], "the status goes out once"
    assert sent.body == b": waiting\n\n" * 2 + b"data: [DONE]\n\n"


async def test_a_refusal_after_a_sign_of_life_is_an_error_frame() -> None:
    sent = Sent()
    stream = PatientAnswer(sent, streams=True)
    await stream.beat()
    await stream(start(400, [(b"content-type", b"application/json")]))
    await stream({"type": "http.response.body", "body": b'{"error": {"message": "no"', "more_body": True})
    await stream({"type": "http.response.body", "body": b"}}"})
    frame = sent.body.removeprefix(b": waiting\n\n").removeprefix(b"data: ")
    assert sent.statuses == [200]
    assert json.loads(frame)["error"] == {"message": "no", "type": "server_error", "param": None, "code": 400}


async def test_an_answer_that_did_not_wait_passes_unchanged() -> None:
    sent = Sent()
    stream = PatientAnswer(sent, streams=True)
    await stream(start(400, []))
    await stream({"type": "http.response.body", "body": b"no"})
    assert (sent.statuses, sent.body, stream.hears) == ([400], b"no", False)


async def test_an_error_ends_a_stream_that_has_begun() -> None:
    sent = Sent()
    stream = PatientAnswer(sent, streams=True)
    await stream(start())
    assert stream.hears
    await stream.fail(OverloadedError("full"))
    assert json.loads(sent.body.removeprefix(b"data: "))["error"]["code"] == "overloaded"
    assert not sent[-1].get("more_body", False)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("status", [200, 400])
async def test_an_answer_that_is_no_stream_hears_spaces_while_it_waits_and_until_it_is_made(status: int) -> None:
    admission = admission_of()
    asked = Asked(admission, status=status)
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten(2)
        other_ends.set()
        await asked.began.wait()
        while not asked.sent.beats.locked():  # those that it heard before its turn
            await asked.sent.beats.acquire()
        await asked.beaten(2)
        asked.answers.set()
        await asking
    assert asked.sent.statuses == [200]
    assert dict(asked.sent[0]["headers"])[b"content-type"] == b"application/json"
    assert asked.sent.body.startswith(b"    ")
    assert json.loads(asked.sent.body).keys() == ({"ok"} if status == 200 else {"error"})
    assert not asked.sent[-1].get("more_body", False)


@pytest.mark.parametrize("status", [200, 400])
async def test_who_need_not_wait_for_a_heartbeat_gets_its_answer_unchanged(status: int) -> None:
    admission = admission_of()
    at_once, other = Asked(admission, status=status), Asked(admission)
    asking = asyncio.create_task(at_once.ask())
    await at_once.began.wait()
    waiting = asyncio.create_task(other.ask())
    await other.beaten(3)
    at_once.answers.set()
    other.answers.set()
    await asyncio.gather(asking, waiting)
    assert at_once.sent == told(status)
    admission = admission_of(heartbeat_s=10.0)
    soon = Asked(admission, status=status)
    soon.answers.set()
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(soon.ask())
        await settle()
        assert admission.snapshot().waiting == 1
        other_ends.set()
        await asking
    assert soon.sent == told(status)


async def test_a_refusal_before_the_first_heartbeat_has_its_own_status() -> None:
    admission = admission_of(heartbeat_s=10.0, target_s=0.05)
    asked = Asked(admission)
    async with busy(admission):
        with pytest.raises(OverloadedError):
            await asked.ask()
    assert not asked.sent


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("scope", [{}, patient(0.1)])
async def test_a_refusal_after_a_sign_of_life_is_told_in_the_body_and_counts_as_one(
    scope: Scope, *, streams: bool
) -> None:
    admission = admission_of(target_s=0.3)
    asked, traffic = Asked(admission, streams=streams, scope=scope), Traffic(ttft_target_s=5.0, admission=admission)
    async with busy(admission):
        await asked.ask(traffic)
    assert asked.sent.statuses == [200]
    assert asked.sent.beaten_s, "its client would have gone before the refusal came"
    assert asked.error["code"] == OverloadedError.code
    seen = traffic.snapshot()
    assert (seen.answered, seen.failed, seen.refused, seen.good) == (0, 0, 1, 0)


@pytest.mark.parametrize("streams", [False, True])
async def test_who_would_wait_for_its_refusal_gets_it_with_a_status(*, streams: bool) -> None:
    admission = admission_of(target_s=0.3)
    asked = Asked(admission, streams=streams, scope=patient(2.0))
    async with busy(admission):
        with pytest.raises(OverloadedError) as caught:
            await asked.ask()
    assert caught.value.retry_after_s
    assert not asked.sent


@pytest.mark.parametrize("streams", [False, True])
async def test_who_was_held_hears_something_long_before_its_client_would_go(*, streams: bool) -> None:
    admission = admission_of(target_s=0.0)
    asked = Asked(admission, streams=streams, scope={HELD_SINCE: 0.0, **patient(600.0)})
    asked.answers.set()
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten(2)
        other_ends.set()
        await asking
    assert asked.sent.body.endswith(STREAM[-1]["body"] if streams else BODY)


@pytest.mark.parametrize("streams", [False, True])
async def test_after_a_silent_wait_too_no_read_timeout_passes_in_silence(*, streams: bool) -> None:
    admission = admission_of()
    asked = Asked(admission, streams=streams, scope=patient(1.0))
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await settle()
        assert admission.snapshot().waiting == 1
        other_ends.set()
        await asked.began.wait()
        assert not asked.sent
        await asked.beaten(2)
        asked.answers.set()
        await asking
    assert asked.sent.statuses == [200]
    assert asked.sent.body.endswith(STREAM[-1]["body"] if streams else BODY)


async def test_who_heard_nothing_and_does_not_say_how_long_it_waits_keeps_its_answers_own_status() -> None:
    admission = admission_of(heartbeat_s=0.3)
    asked, after = Asked(admission, status=400), Asked(admission)
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await settle()
        waiting = asyncio.create_task(after.ask())
        other_ends.set()
        await asked.began.wait()
        await after.beaten(2)
        asked.answers.set()
        after.answers.set()
        await asyncio.gather(asking, waiting)
    assert asked.sent == told(400)


async def test_a_stream_that_waited_hears_comments_until_its_answer_begins() -> None:
    admission = admission_of()
    asked = Asked(admission, streams=True)
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten()
        other_ends.set()
        await asked.began.wait()
        while not asked.sent.beats.locked():  # those that it heard before its turn
            await asked.sent.beats.acquire()
        await asked.beaten(2)
        asked.answers.set()
        await asking
    assert asked.sent.body.replace(b": waiting\n\n", b"") == FRAME + STREAM[-1]["body"]


@pytest.mark.parametrize("early", [False, True])
async def test_no_sign_of_life_stands_within_an_answer(*, early: bool) -> None:
    for streams in (False, True):
        sent = Sent()
        answer = PatientAnswer(sent, streams=streams)
        if early:
            await answer.beat()
        before = sent.body
        await answer(start(200, EVENTS if streams else JSON))
        await answer({"type": "http.response.body", "body": b"data: half", "more_body": True})
        await answer.beat()
        assert sent.body == before + b"data: half"


@pytest.mark.parametrize("streams", [False, True])
async def test_the_turn_leaves_no_gap_in_the_signs_of_life(*, streams: bool) -> None:
    every_s = 0.6
    admission = admission_of(heartbeat_s=every_s)
    asked = Asked(admission, streams=streams)
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten()
        asyncio.get_running_loop().call_later(0.7 * every_s, other_ends.set)
        await asked.began.wait()
        await asked.beaten()
        asked.answers.set()
        await asking
    first_s, second_s = asked.sent.beaten_s
    assert second_s - first_s < 1.4 * every_s


async def test_a_space_is_nothing_that_came_out_of_the_engine() -> None:
    admission = admission_of()
    asked, traffic = Asked(admission), Traffic(ttft_target_s=5.0, admission=admission)
    asked.answers.set()
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask(traffic))
        await settle()
        before_s = traffic.snapshot().progress_s
        await asked.beaten(2)
        assert (traffic.snapshot().chunks, traffic.snapshot().progress_s) == (0, before_s)
        other_ends.set()
        await asking
    assert (traffic.snapshot().chunks, traffic.snapshot().answered) == (1, 1)


async def test_an_engine_that_is_lost_after_a_space_is_told_in_the_body() -> None:
    admission = admission_of()
    asked = Asked(admission)
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten()
        other_ends.set()
        await asked.began.wait()
        admission.give_up(EngineLostError("gone", retry_after_s=10))
        await asking
    assert json.loads(asked.sent.body)["error"]["message"] == "gone"


@pytest.mark.parametrize("streams", [False, True])
async def test_a_failure_that_nobody_expected_is_told_in_the_body_and_raised_for_the_log(*, streams: bool) -> None:
    admission = admission_of()
    asked = Asked(admission, streams=streams, fails=ValueError("a secret"))
    asked.answers.set()
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten()
        other_ends.set()
        with pytest.raises(ValueError, match="a secret"):
            await asking
    assert (asked.error["type"], "secret" in asked.error["message"]) == (RagStackError.type, False)
    assert not asked.sent[-1].get("more_body", False)


@pytest.mark.parametrize("streams", [False, True])
async def test_after_the_answers_end_nothing_more_is_told(*, streams: bool) -> None:
    admission = admission_of()
    asked = Asked(admission, streams=streams, fails_late=ValueError("too late"))
    asked.answers.set()
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten()
        other_ends.set()
        with pytest.raises(ValueError, match="too late"):
            await asking
    assert asked.sent.body.endswith(STREAM[-1]["body"] if streams else BODY)


async def test_who_says_how_long_it_waits_hears_something_sooner() -> None:
    admission = admission_of(heartbeat_s=10.0)
    asked = Asked(admission, scope={"headers": [(b"x-stainless-read-timeout", b"0.3")]})
    asked.answers.set()
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(asked.ask())
        await asked.beaten()
        other_ends.set()
        await asking


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_goes_away_while_it_waits_leaves_nothing_behind(*, streams: bool, heard: bool) -> None:
    admission = admission_of(heartbeat_s=0.02 if heard else 10.0)
    asked = Asked(admission, streams=streams)
    async with busy(admission):
        before = asyncio.all_tasks()
        asking = asyncio.create_task(asked.ask())
        await settle()
        assert admission.snapshot().waiting == 1
        if heard:
            await asked.beaten()
        asked.gone.set()
        with pytest.raises(ClientDisconnectedError):
            await asking
        assert admission.snapshot().waiting == admission.snapshot().waiting_tokens == 0
        assert asyncio.all_tasks() == before
        said = len(asked.sent)
    assert admission.snapshot().turns == 0
    assert not asked.began.is_set(), "nobody searches or generates for it"
    assert len(asked.sent) == said


async def test_a_client_that_goes_away_while_its_answer_is_made_hears_no_more_spaces() -> None:
    admission = admission_of()
    asked = Asked(admission, fails=ClientDisconnectedError())
    async with busy(admission) as other_ends:
        before = asyncio.all_tasks()
        asking = asyncio.create_task(asked.ask())
        await asked.beaten()
        other_ends.set()
        await asked.began.wait()
        asked.answers.set()
        with pytest.raises(ClientDisconnectedError):
            await asking
        assert not asyncio.all_tasks() - before
    assert admission.snapshot().turns == 0
    assert b"error" not in asked.sent.body


async def test_the_waiting_room_says_who_was_held() -> None:
    admission = admission_of(target_s=0.0)
    held, by_itself = Asked(admission, scope={HELD_SINCE: 0.0}), Asked(admission)
    held.answers.set()
    async with busy(admission) as other_ends:
        asking = asyncio.create_task(held.ask())
        await settle()
        with pytest.raises(OverloadedError):
            await by_itself.ask()
        other_ends.set()
        await asking
    assert json.loads(held.sent.body) == {"ok": True}


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
