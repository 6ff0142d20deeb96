"""When an engine counts as lost, and when it only looks like it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from rag_stack.api.admission import Admission, Limits
from rag_stack.api.fair_queue import Ask
from rag_stack.api.traffic import Traffic
from rag_stack.errors import EngineLostError
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving import engine_watch
from rag_stack.serving.engine_watch import EngineWatch

STUCK_S = 10.0
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


class Replica:
    """Traffic, admission and watch as a replica has them, by a clock that the test turns."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.dead = False
        self.tokens: dict[str, int] | None = None
        limits = Limits(slots=1, queue=8, waiting_tokens=1000, target_s=1000.0)
        self.admission = Admission(limits, recorder=MemoryRecorder(), clock=lambda: self.now_s)
        self.traffic = Traffic(ttft_target_s=1.0, admission=self.admission, clock=lambda: self.now_s)

    def watch(self, *, telling: bool = False) -> EngineWatch:
        tokens = (lambda: dict(self.tokens or {})) if telling else None
        return EngineWatch(
            self.traffic, self.admission, stuck_s=STUCK_S, check_engine=self._check_engine, tokens=tokens
        )

    async def _check_engine(self) -> None:
        if self.dead:
            raise RuntimeError("no core")

    @asynccontextmanager
    async def asked(self, send: Send | None = None) -> AsyncIterator["Answer"]:
        """A request that is under way until the block ends."""
        answer = Answer(self.admission)
        scope: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
        task = asyncio.create_task(self.traffic.around(answer)(scope, _silent, send or _ignore))
        await settle()
        yield answer
        answer.over.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Answer:
    """An app whose answer comes as the test says it."""

    def __init__(self, admission: Admission) -> None:
        self.over = asyncio.Event()
        self.lost = asyncio.Event()
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.error: BaseException | None = None
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._admission.turn(Ask("a", 1), receive) as turn:
                await turn.run(self._answer(send))
        except EngineLostError as exc:
            self.error = exc
            self.lost.set()

    async def _answer(self, send: Send) -> None:
        await send(START)
        while not self.over.is_set():
            await send({"type": "http.response.body", "body": await self.pieces.get(), "more_body": True})

    async def say(self, piece: bytes) -> None:
        self.pieces.put_nowait(piece)
        await settle()


async def _silent() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def _ignore(_: Message) -> None:
    return


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def replica() -> Replica:
    return Replica()


async def test_an_engine_that_gives_nothing_is_lost_and_all_who_wait_are_told(replica: Replica) -> None:
    watch = replica.watch()
    async with replica.asked() as running, replica.asked() as waiting:
        await running.say(b"data: {}\n\n")
        replica.now_s += STUCK_S - 1
        await watch.check()
        replica.now_s += 2
        with pytest.raises(EngineLostError, match="gives no tokens"):
            await watch.check()
        await settle()
        assert isinstance(running.error, EngineLostError)
        assert isinstance(waiting.error, EngineLostError)
    with pytest.raises(EngineLostError):
        await watch.check()


async def test_a_dead_engine_is_lost_at_once(replica: Replica) -> None:
    watch = replica.watch()
    async with replica.asked() as running:
        replica.dead = True
        with pytest.raises(EngineLostError, match="no core"):
            await watch.check()
        await settle()
        assert isinstance(running.error, EngineLostError)


async def test_idleness_is_no_silence(replica: Replica) -> None:
    watch = replica.watch()
    replica.now_s += 100 * STUCK_S
    await watch.check()
    async with replica.asked():
        replica.now_s += STUCK_S - 1
        await watch.check()


async def test_keep_alive_comments_are_no_progress(replica: Replica) -> None:
    watch = replica.watch()
    async with replica.asked() as running:
        for _ in range(3):
            replica.now_s += STUCK_S / 2
            await running.say(b": keep-alive\n\n")
        with pytest.raises(EngineLostError):
            await watch.check()


async def test_a_client_that_does_not_read_is_no_silence_of_the_engine(replica: Replica) -> None:
    watch = replica.watch()

    async def blocked(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async with replica.asked(blocked) as running:
        await running.say(b"data: {}\n\n")
        replica.now_s += 2 * STUCK_S
        await watch.check()


async def test_answers_that_go_out_whole_are_watched_by_their_tokens(replica: Replica) -> None:
    watch, steps = replica.watch(telling=True), 5
    async with replica.asked():
        for step in range(steps):
            replica.tokens = {"one": step, "new": 0}
            await watch.check()
            replica.now_s += STUCK_S - 1
        with pytest.raises(EngineLostError):
            await again(watch, replica)


async def again(watch: EngineWatch, replica: Replica) -> Any:
    """Other requests come and go, and none gets a token."""
    for number in range(3):
        replica.tokens = {"one": 4, f"other-{number}": 0}
        await watch.check()
        replica.now_s += STUCK_S - 1


async def test_what_is_before_or_behind_the_engine_does_not_count(replica: Replica) -> None:
    watch = replica.watch(telling=True)
    replica.tokens = {}
    async with replica.asked():
        replica.now_s += 2 * STUCK_S
        await watch.check()


async def test_a_body_that_comes_slowly_is_no_work_of_the_engine(replica: Replica) -> None:
    watch = replica.watch()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    uploading = asyncio.create_task(replica.traffic.around(slow)(scope, _silent, _ignore))
    await settle()
    replica.now_s += 2 * STUCK_S
    async with replica.asked():
        await watch.check()
        replica.now_s += STUCK_S + 1
        with pytest.raises(EngineLostError):
            await watch.check()
    uploading.cancel()
    await asyncio.gather(uploading, return_exceptions=True)


async def test_an_error_in_a_stream_is_no_progress(replica: Replica) -> None:
    watch = replica.watch()
    async with replica.asked() as running:
        replica.now_s += STUCK_S - 1
        await running.say(b'data: {"error": {}}\n\n')
        replica.now_s += 2
        with pytest.raises(EngineLostError):
            await watch.check()


async def test_an_answer_that_fails_has_the_engine_looked_at_before_the_next_health_check() -> None:
    replica = Replica()
    watch = replica.watch()

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    await replica.traffic.around(failing)(scope, _silent, _ignore)
    await settle()
    async with replica.asked() as answer:  # an engine that lives goes on
        assert answer.error is None
    replica.dead = True
    await replica.traffic.around(failing)(scope, _silent, _ignore)
    await settle()
    async with replica.asked() as answer:
        assert isinstance(answer.error, EngineLostError)
    with pytest.raises(EngineLostError):
        await watch.check()


async def test_an_error_frame_in_a_stream_counts_as_a_failure() -> None:
    replica = Replica()
    watch = replica.watch()
    replica.dead = True

    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b'data: {"error": {"code": 500}}\n\n', "more_body": True})

    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    await replica.traffic.around(breaking)(scope, _silent, _ignore)
    await settle()
    async with replica.asked() as answer:
        assert isinstance(answer.error, EngineLostError)
    with pytest.raises(EngineLostError):
        await watch.check()


async def test_it_looks_by_itself_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "_LOOK_S", 0.001)
    replica = Replica()
    running = asyncio.create_task(replica.watch(telling=True).run())
    replica.tokens = {"a": None}  # type: ignore[dict-item]  # what vLLM keeps may be of another kind one day
    async with replica.asked() as answer:
        await asyncio.sleep(0.02)
        assert answer.error is None
        replica.dead = True
        await asyncio.wait_for(answer.lost.wait(), 5)
        assert isinstance(answer.error, EngineLostError)
    assert not running.done(), "it goes on: who answers meanwhile is told as well"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
