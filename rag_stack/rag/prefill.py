"""Prefill ahead: while a rerank runs, the engine reads the prompt that the rerank will probably leave as it is.

When the search has its candidates, and the rerank begins, the prompt of the best of them is built as the final one will
be, and the engine is asked for one token of it. Its prefix cache then holds what that prompt and the final one begin
with: all of it where the rerank changes nothing, else everything before the first document that is another. So it is
begun with as many documents as have mostly stayed in their places. Before the candidates are there nothing is known but
the system prompt, which the engine has had since its first question.

The final prompt breaks the reading off, whichever way it went. An engine caches what it has computed block by block, so
what was read until then is not lost.

It never changes an answer: nobody hears the one token, and it is in no request's usage.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any, Final, Self

from rag_stack.metrics import PREFILLS, Recorder
from rag_stack.rag.payoff import Payoff, Reading
from rag_stack.rag.prompt import GroundedPrompt, Message
from rag_stack.types import Hit

# Of a request's body, what decides its prompt or who may share its prefix; the rest is about the answer.
_PROMPT_FIELDS: Final = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "media_io_kwargs",
        "messages",
        "mm_processor_kwargs",
        "model",
        "prompt",
        "reasoning_effort",
        "tools",
        "truncate_prompt_tokens",
        "truncation_side",
    }
)
# With this the engine reads no prefix from its cache.
_UNCACHED: Final = "prompt_logprobs"
_LOG: Final = logging.getLogger(__name__)

Build = Callable[[Sequence[Hit]], GroundedPrompt]
Going = Callable[[GroundedPrompt], None]
BodyOf = Callable[[Sequence[Message]], Mapping[str, Any]]
# Has the engine answer a body, and nobody hear it, until the event is set; whether it took it.
Ask = Callable[[Mapping[str, Any], asyncio.Event], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class PrefillSettings:
    """`at_once` prompts are read ahead at most; see Payoff for `least_share`.

    `priority` is what the engine is told, where it schedules by that (a greater one comes later).
    """

    at_once: int
    least_share: float
    priority: int | None = None


class Prefiller:
    """Reads prompts ahead for one engine, where it pays. `has_room` is whether nobody waits for the engine."""

    def __init__(self, settings: PrefillSettings, *, has_room: Callable[[], bool], recorder: Recorder) -> None:
        self.payoff = Payoff(least_share=settings.least_share)
        self._settings = settings
        self._has_room = has_room
        self._recorder = recorder
        self._running: set[asyncio.Task[None]] = set()

    def prefill(self, ask: Ask, body_of: BodyOf) -> "Prefill":
        """For one request whose final body `body_of` makes from its messages."""
        return Prefill(self, ask, body_of)

    def depth(self, body: Mapping[str, Any], documents: int) -> int:
        """With how many of its documents a prompt should be read ahead now."""
        free = len(self._running) < self._settings.at_once and self._has_room()
        return self.payoff.depth(documents) if free and body.get(_UNCACHED) is None else 0

    def start(self, run: Awaitable[None]) -> None:
        """Keep a reading until it ends."""
        task = asyncio.ensure_future(run)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def body(self, final: Mapping[str, Any]) -> dict[str, Any]:
        """The least that makes the engine read the same prompt."""
        kept = {key: value for key, value in final.items() if key in _PROMPT_FIELDS}
        if isinstance(final.get("tool_choice"), str) and final["tool_choice"] in ("auto", "none"):
            kept["tool_choice"] = final["tool_choice"]
        priority = {} if self._settings.priority is None else {"priority": self._settings.priority}
        return {**kept, "max_tokens": 1, "temperature": 0.0, "stream": False, **priority}

    def tell(self, outcome: str) -> None:
        """Count what became of one."""
        self._recorder.record(PREFILLS, 1, {"outcome": outcome})


class Prefill:
    """The reading ahead for one request, from its arrival to its first token. A context: its end breaks it off.

    Used from one event loop, but for what `provisional` returns, which any thread may call.
    """

    def __init__(self, owner: Prefiller, ask: Ask, body_of: BodyOf) -> None:
        self._owner = owner
        self._ask = ask
        self._body_of = body_of
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._began_s = time.perf_counter()
        self._provisional_s: float | None = None
        self._read: GroundedPrompt | None = None
        self._settled = self._spoken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._read is not None and not self._settled:
            self._settled = True
            self._owner.tell("cancelled")

    def provisional(self, build: Build, going: Going) -> Callable[[tuple[Hit, ...]], None]:
        """What to call with the documents that a rerank is about to order.

        `build` makes the prompt, blocking; `going` is told of it just before the engine is asked, if it is.
        """

        def call(hits: tuple[Hit, ...]) -> None:
            self._provisional_s = time.perf_counter()
            with suppress(RuntimeError):  # a loop that is closed has nobody left who asks
                self._loop.call_soon_threadsafe(self._begin, build, going, hits)

        return call

    def settle(self, final: GroundedPrompt) -> None:
        """The final prompt is there: break off, and learn how much of what was read is in it."""
        self._over.set()
        if self._provisional_s is None:
            return
        self._owner.payoff.retrieved(time.perf_counter() - self._provisional_s)
        if self._read is not None and not self._settled:
            kept = kept_documents(self._read, final)
            self._owner.payoff.read(Reading(len(self._read.sources), kept))
            self._owner.tell("used" if kept else "cancelled")
        self._settled = True

    def first_token(self) -> None:
        """The answer's first token has come; again does nothing."""
        if self._spoken or self._provisional_s is None or not self._settled:
            return
        self._spoken, now_s = True, time.perf_counter()
        ahead = self._read is not None
        self._owner.payoff.began(ttft_s=now_s - self._began_s, rest_s=now_s - self._provisional_s, ahead=ahead)

    def _begin(self, build: Build, going: Going, hits: tuple[Hit, ...]) -> None:
        depth = 0 if self._over.is_set() else self._owner.depth(self._body_of(()), len(hits))
        if depth:
            self._owner.start(self._run(build, going, hits[:depth]))

    async def _run(self, build: Build, going: Going, hits: tuple[Hit, ...]) -> None:
        """Nothing that goes wrong here is the request's trouble: the final prompt will meet it again, and tell it."""
        try:
            prompt = await asyncio.to_thread(build, hits)
            if self._over.is_set():
                return
            self._read = prompt
            self._owner.tell("started")
            going(prompt)
            if await self._ask(self._owner.body(self._body_of(prompt.messages)), self._over):
                return
            _LOG.info("the engine has refused a prompt that was to be read ahead")
        except Exception:
            _LOG.info("a prompt was not read ahead", exc_info=True)
        if self._read is not None and not self._settled:
            self._read = None
            self._owner.tell("failed")


def kept_documents(read: GroundedPrompt, final: GroundedPrompt) -> int:
    """With how many documents of `read` the final prompt begins. Before the documents both are the same."""
    pairs = zip(read.sources, final.sources, strict=False)
    same = (one.hit.passage.passage_id == other.hit.passage.passage_id for one, other in pairs)
    return sum(1 for _ in takewhile(bool, same))
