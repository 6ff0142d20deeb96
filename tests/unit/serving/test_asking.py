"""How the admin application is asked, against a handle that does what the test wants."""

import asyncio
import logging
from collections.abc import Generator
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException

from rag_stack.serving.asking import AskAdmin


class Response:
    """What a handle's method gives: who is cancelled while waiting for it has not cancelled the call."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self.answer).__await__()

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Serve's handle with one method; the test ends its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[object, ...], Response]] = []
        self.called = asyncio.Event()
        self.sync = self

    def remote(self, *arguments: object) -> Response:
        self.calls.append((arguments, Response()))
        self.called.set()
        return self.calls[-1][1]

    async def next_call(self) -> Response:
        await self.called.wait()
        self.called.clear()
        return self.calls[-1][1]


async def test_it_returns_what_the_method_does_and_asks_for_the_handle_once() -> None:
    handle, found = Handle(), []
    ask = AskAdmin(silence="silent", find=lambda: found.append(1) or handle)
    for answer in ("one", "two"):
        asked = asyncio.create_task(ask("sync", "a", 1))
        (await handle.next_call()).answer.set_result(answer)
        assert await asked == answer
    assert [arguments for arguments, _ in handle.calls] == [("a", 1)] * 2
    assert found == [1]


async def test_an_absent_one_is_none_and_that_is_said_once_until_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    handle = Handle()
    ask = AskAdmin(silence="nothing moves", find=lambda: handle)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        for answer in (None, None, "here", None):
            asked = asyncio.create_task(ask("sync"))
            call = (await handle.next_call()).answer
            call.set_result(answer) if answer else call.set_exception(RayServeException("gone"))
            assert await asked == answer
    assert [record.getMessage() for record in caplog.records] == ["nothing moves: gone"] * 2


async def test_one_that_is_cancelled_cancels_its_call() -> None:
    handle = Handle()
    asked = asyncio.create_task(AskAdmin(silence="silent", find=lambda: handle)("sync"))
    call = await handle.next_call()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert call.cancelled
