"""Requests that wait for an engine: kept company, bounded, and gone with their clients."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from rag_stack.api import rag_layer
from rag_stack.api.auth import digest
from rag_stack.api.outlook import Outlook, Rules
from rag_stack.api.places import Limits, Places
from rag_stack.api.traffic import GENERATES
from rag_stack.api.waiting_room import CHATS, GETS, HELD_SINCE, POSTS, WaitingRoom, held_for_s
from rag_stack.errors import UnavailableError
from rag_stack.metrics import HELD, HELD_BYTES, MemoryRecorder

KEY = "a-key"
RULES = Rules(
    models=("generator",),
    api_key_sha256=(),
    max_body_bytes=1000,
    limits=Limits(requests=4, size_bytes=2000, requests_a_caller=4),
    hold_s=30.0,
    heartbeat_s=0.05,
)
ASLEEP = Outlook(RULES, "asleep", 42.5)
STARTING = Outlook(RULES, "starting", 12.0)
ERROR = b'{"error": {"message": "no", "type": "server_error", "param": null, "code": "busy"}}'


@dataclass
class Engine:
    """An app that answers when told to."""

    status: int = 200
    content_type: bytes = b"text/event-stream"
    parts: tuple[bytes, ...] = (b"data: one\n\n", b"data: [DONE]\n\n")
    breaks_off: bool = False
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[bytes] = field(default_factory=list)
    under_way: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.under_way += 1
        try:
            await self._answer(receive, send)
        finally:
            self.under_way -= 1

    async def _answer(self, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        self.asked.set()
        told, gone = asyncio.ensure_future(self.answers.wait()), asyncio.ensure_future(receive())
        await asyncio.wait({told, gone}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if gone.done():
            return
        gone.cancel()
        headers = [(b"content-type", self.content_type), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for number, part in enumerate(self.parts):
            more = self.breaks_off or number + 1 < len(self.parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})


@dataclass
class Client:
    """A client's side of one request. `heard` is set at every piece of the answer's body."""

    room: WaitingRoom
    body: bytes
    method: str = "POST"
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    told: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    ended: bool = False
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self.ask())

    async def ask(self) -> None:
        named = {"content-type": "application/json", **self.headers}
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        scope = {"type": "http", "method": self.method, "path": self.path, "headers": headers}
        pieces = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> Message:
            if pieces:
                return pieces.pop(0)
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                assert not self.status
                self.status = message["status"]
                self.told = {key.decode(): value.decode() for key, value in message["headers"]}
            else:
                assert self.status
                assert not self.ended
                self.answer += message.get("body", b"")
                self.ended = not message.get("more_body", False)
                self.heard.set()

        await self.room(scope, receive, send)


def room(
    engine: Callable[[Scope, Receive, Send], Awaitable[None]],
    outlook: Outlook = STARTING,
    recorder: MemoryRecorder | None = None,
) -> WaitingRoom:
    async def look() -> Outlook:
        return outlook

    return WaitingRoom(engine, others=("/v1/models",), look=look, places=Places(recorder or MemoryRecorder()))


def chat(*, stream: bool = True, **fields: Any) -> bytes:
    body = {"model": "generator", "messages": [{"role": "user", "content": "who?"}], "stream": stream, **fields}
    return json.dumps(body).encode()


def error_of(client: Client) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(client.answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def beaten(client: Client) -> None:
    """The client has heard something."""
    await asyncio.wait_for(client.heard.wait(), timeout=5)
    client.heard.clear()


def test_the_room_knows_the_layers_routes() -> None:
    passed = {path for method, path in rag_layer.PASSED if method == "POST"}
    assert passed | CHATS == POSTS
    assert GENERATES <= POSTS
    assert {path for method, path in rag_layer.PASSED if method == "GET"} == GETS


async def test_an_answer_that_comes_at_once_passes_unchanged() -> None:
    engine = Engine()
    engine.answers.set()
    client = Client(room(engine, replace(STARTING, rules=replace(RULES, heartbeat_s=10.0))), chat())
    await client.ask()
    assert (client.status, client.told["x-own"], client.answer) == (200, "1", b"".join(engine.parts))
    assert engine.bodies == [chat()]


async def test_a_stream_hears_comments_and_then_its_answer() -> None:
    engine = Engine()
    client = Client(room(engine, ASLEEP), chat(), headers={"x-request-id": "mine"})
    asking = client.start()
    for _ in range(2):
        await beaten(client)
    assert client.told["content-type"].startswith("text/event-stream")
    assert client.told["x-request-id"] == "mine"
    engine.answers.set()
    await asking
    comments, _, answer = client.answer.partition(b"data: ")
    assert comments.count(b"\n\n") == comments.count(b": ") >= 2
    assert b"data: " + answer == b"".join(engine.parts)
    assert client.ended


async def test_another_answer_begins_with_spaces_once_the_wake_is_certain() -> None:
    engine = Engine(content_type=b"application/json", parts=(b'{"ok"', b": true}"))
    client = Client(room(engine), chat(stream=False))
    asking = client.start()
    await beaten(client)
    assert (client.status, client.answer, client.told["content-type"]) == (200, b" ", "application/json")
    engine.answers.set()
    await asking
    assert client.answer.startswith(b" ")
    assert json.loads(client.answer) == {"ok": True}


async def test_a_replicas_own_comments_do_not_end_the_company() -> None:
    going_on = asyncio.Event()

    async def queues(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})
        await going_on.wait()
        await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": False})

    client = Client(room(queues), chat())
    asking = client.start()
    for _ in range(3):
        await beaten(client)
    going_on.set()
    await asking
    assert client.answer.startswith(b": waiting\n\n: the engine starts\n\n")
    assert client.answer.endswith(b"\n\ndata: one\n\n")


async def test_a_replicas_own_spaces_do_not_end_the_company() -> None:
    going_on = asyncio.Event()

    async def queues(_: Scope, __: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b" ", "more_body": True})
        await going_on.wait()
        await send({"type": "http.response.body", "body": b'{"ok": true}', "more_body": False})

    client = Client(room(queues), chat(stream=False))
    asking = client.start()
    for _ in range(3):
        await beaten(client)
    going_on.set()
    await asking
    assert client.answer.startswith(b"   ")
    assert json.loads(client.answer) == {"ok": True}


async def test_what_is_passed_on_says_since_when_it_was_held_and_no_client_can() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    before_s = time.time()
    await Client(room(app), chat(stream=False), headers={HELD_SINCE: "0"}).ask()
    assert before_s <= seen[0][HELD_SINCE] <= time.time()
    assert held_for_s({"headers": [(HELD_SINCE.encode(), b"0")]}, now_s=1.0) is None
    assert held_for_s({HELD_SINCE: 3.0}, now_s=10.0) == 7.0
    assert held_for_s({HELD_SINCE: 3.0}, now_s=1.0) == 0.0, "the other node's clock is ahead"


async def test_who_has_heard_something_is_kept_while_a_start_begins_anew() -> None:
    engine = Engine(content_type=b"application/json", parts=(b'{"ok": true}',))
    states = iter([STARTING] * 3)

    async def look() -> Outlook:
        return next(states, ASLEEP)

    waiting = WaitingRoom(engine, others=(), look=look, places=Places(MemoryRecorder()))
    client = Client(waiting, chat(stream=False), headers={"x-stainless-read-timeout": "0.15"})
    asking = client.start()
    for _ in range(6):
        await beaten(client)
    engine.answers.set()
    await asking
    assert json.loads(client.answer) == {"ok": True}


async def test_while_the_wake_is_uncertain_nothing_is_promised() -> None:
    engine = Engine(content_type=b"application/json")
    client = Client(room(engine, ASLEEP), chat(stream=False), headers={"x-stainless-read-timeout": "0.6"})
    await client.ask()
    assert (client.status, client.told["retry-after"]) == (503, "43")
    assert error_of(client)["type"] == UnavailableError.type
    assert engine.under_way == 0


async def test_a_short_patience_makes_the_heart_beat_faster() -> None:
    slow = replace(STARTING, rules=replace(RULES, heartbeat_s=10.0))
    client = Client(room(Engine(), slow), chat(), headers={"x-stainless-read-timeout": "0.3"})
    asking = client.start()
    began_s = asyncio.get_running_loop().time()
    await beaten(client)
    assert asyncio.get_running_loop().time() - began_s < 5
    client.gone.set()
    await asking


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_has_its_status_before_the_first_beat_and_is_in_the_body_after_it(*, stream: bool) -> None:
    sooner, later = (Engine(status=429, content_type=b"application/json", parts=(ERROR,)) for _ in range(2))
    sooner.answers.set()
    early = Client(room(sooner), chat(stream=stream))
    await early.ask()
    assert (early.status, error_of(early)["code"], early.told["x-own"]) == (429, "busy", "1")
    late = Client(room(later), chat(stream=stream))
    asking = late.start()
    await beaten(late)
    later.answers.set()
    await asking
    assert (late.status, late.ended) == (200, True)
    if stream:
        frames = late.answer.strip().split(b"\n\n")
        assert frames[-1] == b"data: [DONE]"
        assert json.loads(frames[-2].removeprefix(b"data: "))["error"]["code"] == "busy"
    else:
        assert error_of(late)["code"] == "busy"


async def test_a_plain_text_failure_gets_the_shape_of_an_error() -> None:
    engine = Engine(status=503, content_type=b"text/plain", parts=(b"no replica",))
    engine.answers.set()
    client = Client(room(engine), chat())
    await client.ask()
    assert (client.status, error_of(client)["message"]) == (503, "no replica")
    assert client.told["retry-after"] == "5"


@pytest.mark.parametrize("content_type", [b"text/plain", b"application/json"])
async def test_an_engine_that_is_taken_away_is_no_404(content_type: bytes) -> None:
    parts = (ERROR if content_type == b"application/json" else b"Path '/v1/chat/completions' not found.",)
    sooner, later = (Engine(status=404, content_type=content_type, parts=parts) for _ in range(2))
    sooner.answers.set()
    early, late = Client(room(sooner), chat()), Client(room(later), chat())
    await early.ask()
    told = (early.status, early.told.get("retry-after"), error_of(early)["code"])
    assert told == ((503, "5", "unavailable") if content_type == b"text/plain" else (404, None, "busy"))
    asking = late.start()
    await beaten(late)
    later.answers.set()
    await asking
    assert (b'"unavailable"' in late.answer) == (content_type == b"text/plain")


async def test_a_stream_that_breaks_off_says_so() -> None:
    engine = Engine(breaks_off=True, parts=(b"data: one\n\n",))
    engine.answers.set()
    client = Client(room(engine), chat())
    await client.ask()
    first, error, last = client.answer.strip().split(b"\n\n")
    assert (first, last) == (b"data: one", b"data: [DONE]")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == UnavailableError.code


async def test_an_app_that_fails_without_an_answer_is_a_503() -> None:
    async def broken(_: Scope, __: Receive, ___: Send) -> None:
        raise RuntimeError("gone")

    client = Client(room(broken), chat())
    await client.ask()
    assert (client.status, client.told["retry-after"]) == (503, "1")


@pytest.mark.parametrize("stream", [True, False])
async def test_who_goes_away_leaves_nothing_behind(*, stream: bool) -> None:
    recorder = MemoryRecorder()
    engine = Engine()
    waiting = room(engine, recorder=recorder)
    client = Client(waiting, chat(stream=stream))
    asking = client.start()
    await engine.asked.wait()
    assert recorder.values(HELD)[-1] == 1
    client.gone.set()
    await asyncio.wait_for(asking, timeout=1)
    assert (engine.under_way, recorder.values(HELD)[-1], recorder.values(HELD_BYTES)[-1]) == (0, 0, 0)


async def test_an_app_that_does_not_hear_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def deaf(_: Scope, __: Receive, ___: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    client = Client(room(deaf), chat())
    asking = client.start()
    await beaten(client)
    client.gone.set()
    await asyncio.wait_for(asking, timeout=10)
    assert cancelled.is_set()


async def test_nobody_is_held_longer_than_the_release_says() -> None:
    engine = Engine()
    short = replace(STARTING, rules=replace(RULES, hold_s=0.12))
    stream, whole = Client(room(engine, short), chat()), Client(room(engine, short), chat(stream=False))
    silent = Client(room(engine, replace(short, state="asleep")), chat(stream=False))
    await asyncio.gather(stream.ask(), whole.ask(), silent.ask())
    assert stream.answer.endswith(b"data: [DONE]\n\n")
    assert b'"error"' in stream.answer
    assert error_of(whole)["code"] == UnavailableError.code
    assert (silent.status, silent.told["retry-after"]) == (503, "13")
    assert engine.under_way == 0


async def test_an_engine_that_does_not_start_is_not_waited_for() -> None:
    client = Client(room(Engine(), replace(STARTING, state="failed")), chat())
    await client.ask()
    assert (client.status, client.told["retry-after"]) == (503, "60")


async def test_a_full_room_answers_429_and_when_to_come_back() -> None:
    engine = Engine()
    waiting = room(engine, replace(STARTING, estimate_s=900.0))
    clients = [Client(waiting, chat()) for _ in range(RULES.limits.requests)]
    asking = [client.start() for client in clients]
    await beaten(clients[-1])
    late = Client(waiting, chat())
    await late.ask()
    assert (late.status, late.told["retry-after"], error_of(late)["type"]) == (429, "60", "rate_limit_error")
    clients[0].gone.set()
    await asking[0]
    engine.answers.set()
    again = Client(waiting, chat())
    await again.ask()
    assert again.status == 200
    await asyncio.gather(*asking)


async def test_one_caller_leaves_room_for_others() -> None:
    rules = replace(RULES, limits=replace(RULES.limits, requests_a_caller=1))
    waiting = room(Engine(), replace(STARTING, rules=rules))
    first = Client(waiting, chat(), headers={"authorization": "Bearer one"})
    asking = [first.start()]
    await beaten(first)
    second = Client(waiting, chat(), headers={"authorization": "Bearer one"})
    await second.ask()
    other = Client(waiting, chat(), headers={"authorization": "Bearer two"})
    asking.append(other.start())
    await beaten(other)
    assert (second.status, other.status) == (429, 200)
    for client in (first, other):
        client.gone.set()
    await asyncio.gather(*asking)


async def test_bodies_are_bounded_together_and_each() -> None:
    recorder = MemoryRecorder()
    waiting = room(Engine(), recorder=recorder)
    too_large = Client(waiting, chat(user="x" * 1000))
    await too_large.ask()
    assert too_large.status == 413
    clients = [Client(waiting, chat(user="x" * 600)) for _ in range(3)]
    asking = [client.start() for client in clients]
    await asyncio.gather(*(beaten(client) for client in clients))
    assert sorted(client.status for client in clients) == [200, 200, 429]
    for client in clients:
        client.gone.set()
    await asyncio.gather(*asking)
    assert recorder.values(HELD_BYTES)[-1] == 0


REFUSED = [
    ("POST", "/v1/chat/completions", b"{", 400),
    ("POST", "/v1/chat/completions", chat(model="other"), 404),
    ("POST", "/v1/chat/completions", chat(model=None), 400),
    ("POST", "/v1/chat/completions", chat(stream="yes"), 400),
    ("POST", "/v1/responses", b'{"model": "other"}', 404),
    ("GET", "/v1/chat/completions", b"", 405),
    ("GET", "/version", b"", 503),
    ("GET", "/metrics", b"", 404),
    ("POST", "/v1/messages", chat(), 404),
    ("GET", "/", b"", 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REFUSED)
async def test_what_cannot_be_answered_wakes_nobody(method: str, path: str, body: bytes, status: int) -> None:
    engine = Engine()
    client = Client(room(engine, ASLEEP), body, method=method, path=path)
    await client.ask()
    assert client.status == status
    assert error_of(client)["message"]
    assert client.told["x-request-id"]
    assert not engine.asked.is_set()


async def test_who_has_no_key_wakes_nobody() -> None:
    engine = Engine()
    engine.answers.set()
    closed = room(engine, replace(STARTING, rules=replace(RULES, api_key_sha256=(digest(KEY),))))
    for headers in ({}, {"authorization": "Bearer other"}):
        client = Client(closed, chat(), headers=headers)
        await client.ask()
        assert client.status == 401
    assert not engine.asked.is_set()
    known = Client(closed, chat(), headers={"authorization": f"Bearer {KEY}"})
    await known.ask()
    assert known.status == 200


async def test_other_applications_pass_even_while_nothing_is_known() -> None:
    engine = Engine()
    engine.answers.set()

    async def look() -> Outlook:
        raise UnavailableError("nothing is known", retry_after_s=5)

    waiting = WaitingRoom(engine, others=("/v1/models",), look=look, places=Places(MemoryRecorder()))
    for path in ("/v1/models", "/v1/models/generator", "/-/healthz"):
        client = Client(waiting, b"", method="GET", path=path)
        await client.ask()
        assert client.status == 200
    ours = Client(waiting, chat())
    await ours.ask()
    assert (ours.status, ours.told["retry-after"]) == (503, "5")
