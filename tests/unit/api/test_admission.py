"""Who is let in, who waits, who is refused; without a server and by a clock of the test's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Message

from rag_stack.api.admission import Admission, Limits, Turn, is_content
from rag_stack.api.fair_queue import Ask
from rag_stack.api.http import ClientDisconnectedError
from rag_stack.errors import EngineLostError, OverloadedError, RagStackError
from rag_stack.metrics import ADMISSION_REFUSED, MemoryRecorder

LIMITS = Limits(slots=1, queue=4, waiting_tokens=1000, target_s=5.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Client:
    """Its `receive` says nothing until it goes away."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def __call__(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Request:
    """One request in a task: `finish` ends its use of the engine."""

    def __init__(
        self,
        admission: Admission,
        caller: str = "a",
        *,
        tokens: int = 10,
        sequences: int = 1,
        waited_s: float | None = None,
    ) -> None:
        self.client = Client()
        self.done = asyncio.Event()
        self.turn: Turn | None = None
        self._ask = Ask(caller, tokens, sequences)
        self._waited_s = waited_s
        self._admission = admission
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._admission.turn(self._ask, self.client, waited_s=self._waited_s) as turn:
            self.turn = turn
            await turn.run(self._work())

    async def _work(self) -> None:
        await self.done.wait()

    @property
    def let_in(self) -> bool:
        return self.turn is not None

    async def finish(self) -> None:
        self.done.set()
        await self.task
        await settle()

    async def refused(self) -> RagStackError:
        with pytest.raises(RagStackError) as caught:
            await asyncio.wait_for(self.task, timeout=5)
        return caught.value


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def admission_of(clock: Clock | None = None, *, recorder: MemoryRecorder | None = None, **limits: Any) -> Admission:
    return Admission(replace(LIMITS, **limits), recorder=recorder or MemoryRecorder(), clock=clock or Clock())


@asynccontextmanager
async def requests(admission: Admission, *callers: str, **ask: Any) -> AsyncIterator[list[Request]]:
    made = []
    for caller in callers:
        made.append(Request(admission, caller, **ask))
        await settle()
    yield made
    for request in made:
        request.task.cancel()
    await asyncio.gather(*(request.task for request in made), return_exceptions=True)


async def measured(admission: Admission, clock: Clock, *, held_s: float) -> None:
    """One answer that held its slot for so long."""
    request = Request(admission)
    await settle()
    clock.now_s += held_s
    await request.finish()


async def test_as_many_run_as_there_are_slots_and_the_next_follows() -> None:
    admission = admission_of(slots=2)
    async with requests(admission, "a", "a", "a") as (first, second, third):
        assert (first.let_in, second.let_in, third.let_in) == (True, True, False)
        await first.finish()
        assert third.let_in
        assert admission.snapshot().turns == 2


async def test_a_request_for_several_answers_takes_as_many_slots() -> None:
    admission = admission_of(slots=3)
    async with requests(admission, "a", "b", sequences=2) as (first, second):
        assert (first.let_in, second.let_in) == (True, False)
        async with requests(admission, "c") as (small,):
            assert not small.let_in, "nobody overtakes who is next, or it would wait for ever"
            await first.finish()
            assert second.let_in
            assert small.let_in


async def test_a_full_queue_refuses_with_a_time_from_the_measured_rate() -> None:
    clock, recorder = Clock(), MemoryRecorder()
    admission = admission_of(clock, recorder=recorder, queue=2, target_s=100.0)
    await measured(admission, clock, held_s=4.0)
    async with requests(admission, "a", "a", "a", "a") as (*_, last):
        error = await last.refused()
        assert isinstance(error, OverloadedError)
        assert error.retry_after_s == 12, "three turns of four seconds"
    assert recorder.values(ADMISSION_REFUSED, {"reason": "full"}) == [1]


async def test_retry_after_is_between_one_second_and_a_minute() -> None:
    clock = Clock()
    admission = admission_of(clock, queue=0, target_s=1e6)
    async with requests(admission, "a", "a") as (_, last):
        assert (await last.refused()).retry_after_s == 1
    await measured(admission, clock, held_s=500.0)
    async with requests(admission, "a", "a") as (_, last):
        assert (await last.refused()).retry_after_s == 60


async def test_tokens_bound_the_queue_too() -> None:
    admission = admission_of(waiting_tokens=100)
    async with requests(admission, "a", "a", "a", tokens=60) as (_, second, third):
        await third.refused()
        assert not second.task.done()


async def test_who_floods_loses_its_own_newest_when_another_comes() -> None:
    admission = admission_of(queue=3)
    async with (
        requests(admission, "flood", "flood", "flood", "flood") as (first, *waiting),
        requests(admission, "polite") as (polite,),
    ):
        await waiting[-1].refused()
        assert not polite.task.done()
        await first.finish()
        assert polite.let_in, "it has had nothing yet"


async def test_who_could_not_begin_within_the_target_is_refused_at_once() -> None:
    clock = Clock()
    admission = admission_of(clock, queue=100, target_s=6.0)
    await measured(admission, clock, held_s=2.0)
    async with requests(admission, "a", "a", "a", "a") as (_, second, third, fourth):
        assert not second.task.done(), "two seconds"
        assert not third.task.done(), "four seconds"
        assert (await fourth.refused()).retry_after_s == 6


async def test_who_has_waited_too_long_is_refused_though_it_was_let_into_the_queue() -> None:
    admission = Admission(replace(LIMITS, target_s=0.05), recorder=MemoryRecorder())
    async with requests(admission, "a", "a") as (_, second):
        assert isinstance(await second.refused(), OverloadedError)
        assert admission.snapshot().waiting == 0


async def test_what_was_held_for_a_start_is_let_in_whatever_its_deadline() -> None:
    clock = Clock()
    admission = admission_of(clock, queue=1, held=10, held_s=900.0)
    await measured(admission, clock, held_s=2.5)
    async with requests(admission, *"aaaaaaaa", waited_s=60.0) as made:
        assert not any(request.task.done() for request in made)
        clock.now_s += 10.0
        async with requests(admission, "a") as (later,):
            assert isinstance(await later.refused(), OverloadedError)


async def test_a_replica_that_starts_beside_others_takes_no_more_than_they_do() -> None:
    clock = Clock()
    admission = admission_of(clock, queue=1, held=10, held_s=900.0)
    async with requests(admission, "a", "a", "a") as (_, second, third):
        assert isinstance(await third.refused(), OverloadedError)
        assert not second.task.done()


async def test_of_two_replicas_that_wake_at_once_both_take_what_was_held() -> None:
    clock = Clock()
    for _ in range(2):
        admission = admission_of(clock, queue=0, held=3, held_s=900.0)
        async with requests(admission, *"aaaa", waited_s=60.0) as made:
            assert not any(request.task.done() for request in made)
        clock.now_s += 10.0


async def test_a_crowd_that_is_slow_to_come_was_held_all_the_same() -> None:
    clock = Clock()
    admission = admission_of(clock, queue=0, held=10, held_s=900.0)
    async with requests(admission, "a", waited_s=60.0):
        clock.now_s += 20.0
        async with requests(admission, "a", waited_s=21.0) as (of_the_crowd,):
            assert not of_the_crowd.task.done(), "it came to the waiting room before there was a replica"
            async with requests(admission, "a", waited_s=5.0) as (later,):
                assert isinstance(await later.refused(), OverloadedError), "it came when there was one"


async def test_what_came_by_itself_takes_no_place_of_what_was_held() -> None:
    admission = admission_of(queue=2, held=2, held_s=900.0)
    async with (
        requests(admission, "a", "a", "a"),
        requests(admission, "b", "b", "b", waited_s=60.0) as (*held, too_much),
    ):
        await too_much.refused()
        assert not any(request.task.done() for request in held)


async def test_what_was_held_is_not_counted_by_tokens_and_nobody_takes_its_place() -> None:
    clock = Clock()
    admission = admission_of(clock, queue=4, held=4, held_s=900.0, waiting_tokens=100)
    async with requests(admission, *"aaaa", tokens=60, waited_s=60.0) as held:
        clock.now_s += 10.0
        async with requests(admission, "b", "b", tokens=60) as (later, too_much):
            await too_much.refused()
            assert not any(request.task.done() for request in (*held, later))


async def test_an_engine_that_is_lost_as_a_turn_is_asked_for_is_not_waited_for() -> None:
    admission = admission_of()
    lost = EngineLostError("gone", retry_after_s=10)
    async with requests(admission, "a"):
        late = Request(admission)
        asyncio.get_running_loop().call_soon(admission.give_up, lost)  # before the wait has begun
        assert await asyncio.wait_for(late.refused(), timeout=5) is lost
    assert admission.snapshot().waiting == 0


async def test_a_client_that_goes_away_leaves_the_queue_at_once() -> None:
    admission = admission_of()
    async with requests(admission, "a", "a") as (_, second):
        assert admission.snapshot().waiting == 1
        second.client.gone.set()
        with pytest.raises(ClientDisconnectedError):
            await second.task
        assert admission.snapshot().waiting == admission.snapshot().waiting_tokens == 0


async def test_a_client_that_goes_away_as_its_turn_comes_does_not_keep_the_slot() -> None:
    admission = admission_of()
    async with requests(admission, "a", "a", "a") as (first, second, third):
        first.done.set()
        second.task.cancel()
        await settle()
        assert third.let_in
        assert admission.snapshot().turns == 1


async def test_a_lost_engine_ends_what_runs_and_what_waits_and_takes_nothing_more() -> None:
    admission = admission_of()
    lost = EngineLostError("gone", retry_after_s=10)
    async with requests(admission, "a", "a") as (running, waiting):
        admission.give_up(lost)
        assert await running.refused() is lost
        assert await waiting.refused() is lost
        async with requests(admission, "a") as (late,):
            assert await late.refused() is lost
    assert admission.snapshot().turns == admission.snapshot().waiting == 0


@pytest.mark.parametrize(
    ("body", "content"),
    [(b"", False), (b" ", False), (b": ping\n\n", False), (b"data: {}\n\n", True), (b": a\n\ndata: 1\n\n", True)],
)
def test_a_comment_is_no_content(body: bytes, content: bool) -> None:
    assert is_content(body) == content
