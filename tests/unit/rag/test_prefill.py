"""A prompt that is read ahead: begun, broken off, counted; and nothing that the request notices."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rag_stack.metrics import PREFILLS, MemoryRecorder
from rag_stack.rag.ordering import FixedOrder, Surroundings
from rag_stack.rag.prefill import Going, Prefill, Prefiller, PrefillSettings
from rag_stack.rag.prompt import GroundedPrompt, Message
from rag_stack.types import Hit, Passage, Source

OUTCOMES = ("started", "used", "cancelled", "failed")


class Engine:
    """Reads until it is told that it is over, as a slow engine does; or `fails`, or `refuses`."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self.asked = asyncio.Event()
        self.ended = asyncio.Event()
        self.fails = self.refuses = False

    async def __call__(self, body: Mapping[str, Any], over: asyncio.Event) -> bool:
        self.bodies.append(body)
        self.asked.set()
        if self.fails:
            raise RuntimeError("no engine")
        if not self.refuses:
            await over.wait()
        self.ended.set()
        return not self.refuses


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


def prefiller(recorder: MemoryRecorder, *, at_once: int = 2, room: bool = True, **settings: Any) -> Prefiller:
    """One that has seen enough: half of the time to the first token is the rest of the retrieval."""
    made = Prefiller(
        PrefillSettings(at_once=at_once, least_share=0.1, **settings), has_room=lambda: room, recorder=recorder
    )
    for _ in range(8):
        made.payoff.retrieved(1.0)
        made.payoff.began(ttft_s=2.0, rest_s=1.5, ahead=False)
    return made


def hits(*names: str) -> tuple[Hit, ...]:
    return tuple(Hit(Passage(name, name, f"text of {name}", "", "", 0, 1), 0.5) for name in names)


def build(found: Sequence[Hit]) -> GroundedPrompt:
    sources = tuple(Source(n, hit) for n, hit in enumerate(found, start=1))
    text = " ".join(hit.passage.text for hit in found)
    plan = FixedOrder("rank").plan(found, Surroundings(0))
    return GroundedPrompt(({"role": "user", "content": f"{text} question"},), sources, plan)


def body_of(messages: Sequence[Message]) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), "stream": True, "max_tokens": 64, "n": 3, "cache_salt": "s"}


def outcomes(recorder: MemoryRecorder) -> dict[str, int]:
    told = {outcome: len(recorder.values(PREFILLS, {"outcome": outcome})) for outcome in OUTCOMES}
    return {outcome: count for outcome, count in told.items() if count}


async def begin(prefill: Prefill, found: tuple[Hit, ...], going: Going = lambda prompt: None) -> None:
    """As a search thread does it."""
    thread = threading.Thread(target=prefill.provisional(build, going), args=(found,))
    thread.start()
    await asyncio.to_thread(thread.join)


async def settled() -> None:
    """All that is ready to run has run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_final_prompt_breaks_the_reading_off_and_uses_it(engine: Engine, recorder: MemoryRecorder) -> None:
    with prefiller(recorder).prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a", "b"))
        await engine.asked.wait()
        prefill.settle(build(hits("a", "b")))
    await engine.ended.wait()
    assert outcomes(recorder) == {"started": 1, "used": 1}


async def test_the_engine_is_asked_for_one_token_of_the_same_prompt(engine: Engine, recorder: MemoryRecorder) -> None:
    with prefiller(recorder, priority=7).prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a", "b"))
        await engine.asked.wait()
    messages = list(build(hits("a", "b")).messages)
    shared = {"model": "m", "messages": messages, "cache_salt": "s"}
    assert engine.bodies == [{**shared, "max_tokens": 1, "temperature": 0.0, "stream": False, "priority": 7}]


async def test_other_documents_cancel_it(engine: Engine, recorder: MemoryRecorder) -> None:
    with prefiller(recorder).prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a", "b"))
        await engine.asked.wait()
        prefill.settle(build(hits("c", "a", "b")))
    await engine.ended.wait()
    assert outcomes(recorder) == {"started": 1, "cancelled": 1}


async def test_a_client_that_goes_away_cancels_it(engine: Engine, recorder: MemoryRecorder) -> None:
    with prefiller(recorder).prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a"))
        await engine.asked.wait()
    await engine.ended.wait()
    assert outcomes(recorder) == {"started": 1, "cancelled": 1}


@pytest.mark.parametrize("how", ["fails", "refuses"])
async def test_an_engine_that_does_not_take_it_is_told_and_the_request_goes_on(
    engine: Engine, recorder: MemoryRecorder, how: str
) -> None:
    setattr(engine, how, True)
    with prefiller(recorder).prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a"))
        await engine.asked.wait()
        await settled()
        prefill.settle(build(hits("a")))
    assert outcomes(recorder) == {"started": 1, "failed": 1}


async def test_it_is_told_before_the_engine_is_asked_and_not_where_it_is_not(
    engine: Engine, recorder: MemoryRecorder
) -> None:
    told: list[tuple[str, bool]] = []

    def going(prompt: GroundedPrompt) -> None:
        told.append((str(prompt.messages[0]["content"]), engine.asked.is_set()))

    with prefiller(recorder).prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a"), going)
        await engine.asked.wait()
    assert told == [("text of a question", False)]
    late, built = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(found: Sequence[Hit]) -> GroundedPrompt:
        loop.call_soon_threadsafe(built.set)
        late.wait(30)
        return build(found)

    owner = prefiller(recorder)
    with owner.prefill(engine, body_of) as prefill:
        prefill.provisional(slow, going)(hits("b"))
        await built.wait()
        prefill.settle(build(hits("b")))
        late.set()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    assert len(told) == len(engine.bodies) == 1


async def test_no_more_are_read_at_once_than_is_said(engine: Engine, recorder: MemoryRecorder) -> None:
    owner = prefiller(recorder, at_once=1)
    with owner.prefill(engine, body_of) as first, owner.prefill(engine, body_of) as second:
        await begin(first, hits("a"))
        await engine.asked.wait()
        await begin(second, hits("b"))
        await settled()
        second.settle(build(hits("b")))
    assert len(engine.bodies) == 1
    assert outcomes(recorder) == {"started": 1, "cancelled": 1}


async def test_nothing_is_read_while_others_wait_or_after_the_end(engine: Engine, recorder: MemoryRecorder) -> None:
    with prefiller(recorder, room=False).prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a"))
        await settled()
    with prefiller(recorder).prefill(engine, body_of) as prefill:
        prefill.settle(build(hits("a")))
        await begin(prefill, hits("a"))
        await settled()
    assert not engine.bodies
    assert outcomes(recorder) == {}


async def test_a_request_that_reads_no_cached_prefix_has_none_read(engine: Engine, recorder: MemoryRecorder) -> None:
    def unshared(messages: Sequence[Message]) -> dict[str, Any]:
        return {**body_of(messages), "prompt_logprobs": 1}

    with prefiller(recorder).prefill(engine, unshared) as prefill:
        await begin(prefill, hits("a"))
        await settled()
    assert not engine.bodies


async def test_times_are_learned_without_a_reading_too(engine: Engine, recorder: MemoryRecorder) -> None:
    owner = Prefiller(PrefillSettings(at_once=1, least_share=0.0), has_room=lambda: True, recorder=recorder)
    for _ in range(4):
        with owner.prefill(engine, body_of) as prefill:
            await begin(prefill, hits("a"))
            await settled()
            prefill.settle(build(hits("a")))
        prefill.first_token()
        prefill.first_token()
    assert not engine.bodies
    assert 0 < owner.payoff.share() < 1
    with owner.prefill(engine, body_of) as prefill:
        await begin(prefill, hits("a"))
        await engine.asked.wait()
