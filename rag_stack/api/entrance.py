"""A request's way to its turn at the engine: what it asks for, a sign of life while it waits, an error when it is lost.

A stream that waits hears a comment every `heartbeat_s`, or sooner where its client waits for less; what is no stream
hears a space, until its answer is made. From the first on it has its status, 200, so that whatever goes wrong is told
in an error frame, or in an error object in the place of the answer. A stream hears of it in a frame too when the engine
is lost in the middle of its answer. Who gets its turn sooner sees no difference.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from rag_stack.api import sse
from rag_stack.api.admission import Admission, Beat, Turn
from rag_stack.api.auth import CALLER
from rag_stack.api.engine import shape_error
from rag_stack.api.fair_queue import Ask
from rag_stack.api.held_answer import HeldAnswer, beat_s
from rag_stack.api.http import ClientDisconnectedError, dumps, error_body
from rag_stack.api.waiting_room import held_for_s
from rag_stack.errors import RagStackError
from rag_stack.rag.prompt import text_of

# English text has four characters a token, near enough to share an engine by.
_CHARS_PER_TOKEN: Final = 4
_PASSAGE_TOKENS: Final = 200
_ANSWER_TOKENS: Final = 256
_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
}

Answer = Callable[[Send, Callable[[Send], Send]], Coroutine[Any, Any, None]]


async def let_in(
    admission: Admission | None, ask: Ask, scope: Scope, receive: Receive, send: Send, *, streams: bool, answer: Answer
) -> None:
    """Answer when it is the request's turn. `answer` gets where to send, and what to put around the engine's `send`.

    Raises what `Admission.turn` raises, as long as the client can still be given a status.
    """
    if admission is None:
        await answer(send, lambda inner: inner)
        return
    every_s = beat_s(scope, admission.heartbeat_s)
    turn = partial(admission.turn, ask, receive, waited_s=held_for_s(scope, now_s=time.time()))
    if streams:
        patient = PatientStream(send)
        await _stream(turn(while_waiting=Beat(patient.beat, every_s)), patient, answer)
    else:
        held = HeldAnswer(send, streams=False)
        await _whole(turn(while_waiting=Beat(held.beat, every_s)), held, send, answer, every_s=every_s)


async def _stream(turn: AbstractAsyncContextManager[Turn], patient: "PatientStream", answer: Answer) -> None:
    try:
        async with turn as mine:
            await mine.run(answer(patient, mine.timed))
    except RagStackError as exc:
        if not patient.streaming:
            raise
        await patient.fail(exc)


async def _whole(
    turn: AbstractAsyncContextManager[Turn], held: HeldAnswer, send: Send, answer: Answer, *, every_s: float
) -> None:
    try:
        async with turn as mine:
            if not held.opened:
                await mine.run(answer(send, mine.timed))
                return
            async with _company(held, every_s):
                await mine.run(answer(held, mine.timed))
    except ClientDisconnectedError:
        raise
    except Exception as exc:
        if not held.opened:
            raise
        if isinstance(exc, RagStackError):
            await held.fail(exc)
            return
        await held.fail(RagStackError("the server failed; its log has the request id"))
        raise


@asynccontextmanager
async def _company(held: HeldAnswer, every_s: float) -> AsyncIterator[None]:
    """Signs of life go on until the answer begins: the client waits on, and has its status already."""
    beating = asyncio.create_task(_beat_until_begun(held, every_s))
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def _beat_until_begun(held: HeldAnswer, every_s: float) -> None:
    while not held.begun.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(held.begun.wait(), every_s)
        await held.beat()


def ask_of(scope: Scope, body: Mapping[str, Any], *, passages: int = 0) -> Ask:
    """What a request asks of the engine. Fields that make no sense are left for the engine to refuse."""
    prompts = body.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and all(isinstance(each, str) for each in prompts) else 1
    sequences = max(1, several) * _positive(body.get("n"), 1)
    limits = (_positive(body.get(name), 0) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    answer = next((limit for limit in limits if limit), _ANSWER_TOKENS)
    prompt = _chars(body) // _CHARS_PER_TOKEN + passages * _PASSAGE_TOKENS
    return Ask(scope.get(CALLER, ""), prompt + sequences * answer, sequences)


class PatientStream:
    """A `send` for an answer whose stream may have to begin before there is anything to say."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refusal: Message | None = None
        self._refused = b""
        self.streaming = False
        self._early = False

    async def beat(self) -> None:
        """Say that the connection lives."""
        if not self.streaming:
            self.streaming = self._early = True
            await self._send(_START)
        await self._send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})

    async def __call__(self, message: Message) -> None:
        """Take the answer's next message."""
        if message["type"] == "http.response.start":
            events = any(k == b"content-type" and b"event-stream" in v for k, v in message.get("headers", []))
            if self._early:
                self._refusal = None if events else message
                return
            self.streaming = events
        elif self._refusal is not None:
            await self._collect(self._refusal, message)
            return
        await self._send(message)

    async def fail(self, error: RagStackError) -> None:
        """End the stream with an error frame."""
        await self._send({"type": "http.response.body", "body": sse.encode(error_body(error))})

    async def _collect(self, start: Message, message: Message) -> None:
        """An answer that is no stream, to a client that was promised one: an error, as a frame."""
        self._refused += message.get("body", b"")
        if not message.get("more_body", False):
            frame = sse.encode(shape_error(self._refused, status=start["status"]))
            await self._send({"type": "http.response.body", "body": frame})


def _chars(body: Mapping[str, Any]) -> int:
    """Characters of the text that the engine will read; a prompt of token numbers counts four for each."""
    messages = body.get("messages")
    if isinstance(messages, list):
        tools = len(dumps({"tools": body["tools"]})) if body.get("tools") else 0
        return tools + sum(len(text_of(each)) for each in messages if isinstance(each, Mapping))
    text = body.get("prompt", body.get("input"))
    if isinstance(text, list):
        return sum(len(each) if isinstance(each, str) else _CHARS_PER_TOKEN for each in text)
    return len(text) if isinstance(text, str) else 0


def _positive(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
