"""A request's way to its turn at the engine: what it asks for, a sign of life while it waits, an error when it is lost.

Who must wait hears comments, if its answer is a stream, or spaces, until the answer begins. From the first on it has
its status, 200, so that whatever goes wrong is told in an error frame, or in an error object in the place of the
answer. Therefore nobody hears anything who can be told with a status in time: what was held for a start, which is not
refused for coming late, hears something every `heartbeat_s`, or sooner where its client waits for less; all others
when their client's read timeout is about to end, or after `heartbeat_s` of waiting where it is not known, and from
then on as often.

A stream hears of it in a frame too when the engine is lost in the middle of its answer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from rag_stack.api import sse
from rag_stack.api.admission import Admission, Beat, Turn, is_content
from rag_stack.api.auth import CALLER
from rag_stack.api.engine import shape_error
from rag_stack.api.fair_queue import Ask
from rag_stack.api.held_answer import beat_s, early_start, quiet_s, read_timeout_s
from rag_stack.api.http import ClientDisconnectedError, dumps, error_body
from rag_stack.api.waiting_room import held_for_s
from rag_stack.errors import RagStackError
from rag_stack.rag.prompt import text_of
from rag_stack.tracing.tracer import UNTRACED, Tracer

# English text has four characters a token, near enough to share an engine by.
_CHARS_PER_TOKEN: Final = 4
_PASSAGE_TOKENS: Final = 200
_ANSWER_TOKENS: Final = 256
_FAILED: Final = 400

Answer = Callable[[Send, Callable[[Send], Send]], Coroutine[Any, Any, None]]


async def let_in(
    admission: Admission | None,
    ask: Ask,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    streams: bool,
    answer: Answer,
    tracer: Tracer = UNTRACED,
) -> None:
    """Answer when it is the request's turn. `answer` gets where to send, and what to put around the engine's `send`.

    Raises what `Admission.turn` raises, as long as the client can still be given a status.
    """
    if admission is None:
        await answer(send, lambda inner: inner)
        return
    patient = PatientAnswer(send, streams=streams)
    beat = Beat(patient.beat, beat_s(scope, admission.heartbeat_s), quiet_s(scope, admission.heartbeat_s))
    waited_s = held_for_s(scope, now_s=time.time())
    turn = admission.turn(ask, receive, waited_s=waited_s, while_waiting=beat)
    turn = _traced(turn, tracer) if tracer.enabled else turn
    await _answer(turn, patient, answer, beat, patience_s=read_timeout_s(scope))


@asynccontextmanager
async def _traced(turn: AbstractAsyncContextManager[Turn], tracer: Tracer) -> AsyncIterator[Turn]:
    """The turn, with the wait for it as a span. A wait in vain is all that its request's span shows."""
    asked_s = time.time()
    async with turn as mine:
        tracer.add("admission", asked_s, time.time(), {"queued": mine.queued})
        yield mine


async def _answer(
    turn: AbstractAsyncContextManager[Turn],
    patient: "PatientAnswer",
    answer: Answer,
    beat: Beat,
    *,
    patience_s: float | None,
) -> None:
    try:
        async with turn as mine:
            # Who has heard nothing, and does not say how long it waits, is still told with a status what goes wrong.
            beats = mine.queued and (patient.hears or patience_s is not None)
            async with _company(patient, beat) if beats else nullcontext():
                await mine.run(answer(patient, mine.timed))
    except ClientDisconnectedError:
        raise
    except Exception as exc:
        if not patient.hears:
            raise
        if isinstance(exc, RagStackError):
            await patient.fail(exc)
            return
        await patient.fail(RagStackError("the server failed; its log has the request id"))
        raise


@asynccontextmanager
async def _company(patient: "PatientAnswer", beat: Beat) -> AsyncIterator[None]:
    """Signs of life go on until the answer begins: for its client the wait is one, before the turn and after it."""
    beating = asyncio.create_task(_beat_until_begun(patient, beat))
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def _beat_until_begun(patient: "PatientAnswer", beat: Beat) -> None:
    clock = asyncio.get_running_loop().time
    while not patient.begun.is_set():
        at_s = patient.heard_s + (beat.every_s if patient.hears else beat.quiet_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(patient.begun.wait(), at_s - clock())
        await patient.beat()


def ask_of(scope: Scope, body: Mapping[str, Any], *, passages: int = 0) -> Ask:
    """What a request asks of the engine. Fields that make no sense are left for the engine to refuse."""
    prompts = body.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and all(isinstance(each, str) for each in prompts) else 1
    sequences = max(1, several) * _positive(body.get("n"), 1)
    limits = (_positive(body.get(name), 0) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    answer = next((limit for limit in limits if limit), _ANSWER_TOKENS)
    prompt = _chars(body) // _CHARS_PER_TOKEN + passages * _PASSAGE_TOKENS
    return Ask(scope.get(CALLER, ""), prompt + sequences * answer, sequences)


class PatientAnswer:
    """A `send` for an answer that may have to begin before there is anything to say. Until then all passes unchanged.

    `hears` says whether the client has its status and can still be told in the body what goes wrong; `begun` is set
    once something of the answer itself goes out; `heard_s` is when the last sign of life went out, by the loop's clock,
    and before the first when the request came.
    """

    def __init__(self, send: Send, *, streams: bool) -> None:
        self.begun = asyncio.Event()
        self.hears = False
        self.heard_s = asyncio.get_running_loop().time()
        self._send = send
        self._streams = streams
        self._order = asyncio.Lock()
        self._early = False
        self._refusal: Message | None = None
        self._refused = b""

    async def beat(self) -> None:
        """Say that the connection lives. Nothing once the answer has begun."""
        async with self._order:
            if self.begun.is_set():
                return
            if not self.hears:
                self.hears = self._early = True
                await self._send(early_start(streams=self._streams))
            sign = b": waiting\n\n" if self._streams else b" "
            await self._send({"type": "http.response.body", "body": sign, "more_body": True})
            self.heard_s = asyncio.get_running_loop().time()

    async def __call__(self, message: Message) -> None:
        """Take the answer's next message."""
        if self.begun.is_set() and self._refusal is None and message["type"] == "http.response.body":
            # Nobody else sends any more, so there is no order to keep; most tokens come by here.
            self.hears = self.hears and message.get("more_body", False) and self._streams
            await self._send(message)
            return
        async with self._order:
            if message["type"] == "http.response.start":
                await self._begin(message)
            elif self._refusal is not None:
                await self._collect(self._refusal, message)
            else:
                more = message.get("more_body", False)
                if not more or is_content(message.get("body", b"")):
                    self.begun.set()
                    self.hears = self.hears and more and self._streams  # half a JSON answer cannot be mended
                await self._send(message)

    async def fail(self, error: RagStackError) -> None:
        """Tell a client that `hears` why there is no answer, or no more of it."""
        async with self._order:
            await self._end(error_body(error))

    async def _begin(self, start: Message) -> None:
        events = any(k == b"content-type" and b"event-stream" in v for k, v in start.get("headers", []))
        if self._early:
            as_promised = events if self._streams else start["status"] < _FAILED
            self._refusal = None if as_promised else start
            return
        self.hears = self._streams and events
        if not self.hears:
            self.begun.set()  # its body is at hand
        await self._send(start)

    async def _collect(self, start: Message, message: Message) -> None:
        """An answer of another kind than its client was promised: an error, as a frame or in the answer's place."""
        self._refused += message.get("body", b"")
        if not message.get("more_body", False):
            await self._end(shape_error(self._refused, status=start["status"]))

    async def _end(self, error: Mapping[str, Any]) -> None:
        self.hears = False
        self.begun.set()
        last = sse.encode(error) if self._streams else dumps(error)
        await self._send({"type": "http.response.body", "body": last})


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
