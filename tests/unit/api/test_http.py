"""Reading a body, and letting go of work that nobody waits for."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive

from rag_stack.api.http import ClientDisconnectedError, dumps, read_json, while_connected
from rag_stack.errors import InvalidRequestError, PayloadTooLargeError

JSON = [(b"content-type", b"application/json")]


def _receive(messages: Iterable[Message]) -> Receive:
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    return receive


def _body(*pieces: bytes) -> Receive:
    last = len(pieces) - 1
    return _receive({"type": "http.request", "body": each, "more_body": n < last} for n, each in enumerate(pieces))


async def _read(*pieces: bytes, headers: Any = JSON, max_bytes: int = 1000) -> dict[str, Any]:
    return await read_json({"headers": headers}, _body(*pieces), max_bytes=max_bytes)


_JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), _JSON_VALUES, max_size=4), st.booleans())
async def test_what_is_read_can_be_passed_on(body: dict[str, Any], ascii_only: bool) -> None:
    read = await _read(json.dumps(body, ensure_ascii=ascii_only).encode(), max_bytes=1 << 20)
    assert read == body
    assert json.loads(dumps(read)) == body


@given(st.binary(max_size=40))
async def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for given_bytes in (data, b'{"a": "' + data + b'"}', b'{"a": ' + data + b"}"):
        try:
            dumps(await _read(given_bytes))
        except InvalidRequestError:
            continue


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud83d"', '"\\u00e9"', "1.5e3"])
async def test_escapes_are_read(text: str) -> None:
    assert await _read(b'{"a": ' + text.encode() + b"}") == {"a": json.loads(text)}


@pytest.mark.parametrize(
    "text", ['"\\ud83d"', '"\\uDE00\\ud83d"', "NaN", "Infinity", "-Infinity", "1e400", "[" * 300 + "]" * 300]
)
async def test_what_could_not_be_passed_on_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        await _read(b'{"a": ' + text.encode() + b"}")
    with pytest.raises(InvalidRequestError):
        await _read(b'{"a": {"b": [' + text.encode() + b"]}}")


async def test_many_values_beside_each_other_are_not_deep() -> None:
    body = {"a": [[1], {"b": 2}] * 1000}
    assert await _read(json.dumps(body).encode(), max_bytes=1 << 20) == body


async def test_reading_stops_at_the_limit() -> None:
    given_pieces = 0

    def pieces() -> Iterable[Message]:
        nonlocal given_pieces
        while True:
            given_pieces += 1
            yield {"type": "http.request", "body": b" " * 10, "more_body": True}

    with pytest.raises(PayloadTooLargeError):
        await read_json({"headers": JSON}, _receive(pieces()), max_bytes=100)
    assert given_pieces == 11


@pytest.mark.parametrize("length", [b"101", b"9" * 5000])
async def test_a_declared_length_is_refused_unread(length: bytes) -> None:
    with pytest.raises(PayloadTooLargeError):
        await read_json({"headers": [*JSON, (b"content-length", length)]}, _receive([]), max_bytes=100)


@pytest.mark.parametrize("length", [b"\xb2", b"x", b"-5", b""])
async def test_a_length_that_is_no_number_is_not_believed(length: bytes) -> None:
    assert await _read(b"{}", headers=[*JSON, (b"content-length", length)]) == {}


async def test_a_client_that_leaves_while_it_sends() -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    with pytest.raises(ClientDisconnectedError):
        await read_json({"headers": JSON}, _receive(messages), max_bytes=100)


class _Line:
    """A connection that stays open until it is cut."""

    def __init__(self) -> None:
        self.cut = asyncio.Event()
        self.listeners = 0

    async def receive(self) -> Message:
        self.listeners += 1
        try:
            await self.cut.wait()
        finally:
            self.listeners -= 1
        return {"type": "http.disconnect"}


async def test_work_ends_before_the_client_leaves() -> None:
    line = _Line()

    async def work() -> int:
        return 7

    assert await while_connected(work(), line.receive) == 7
    assert line.listeners == 0


async def test_work_that_fails() -> None:
    line = _Line()

    async def work() -> int:
        raise InvalidRequestError("no")

    with pytest.raises(InvalidRequestError):
        await while_connected(work(), line.receive)
    assert line.listeners == 0


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    line, ended = _Line(), asyncio.Event()

    async def work() -> None:
        line.cut.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ClientDisconnectedError):
        await while_connected(work(), line.receive)
    assert ended.is_set()


async def test_work_is_cancelled_with_its_request() -> None:
    line, begun, ended = _Line(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    request = asyncio.create_task(while_connected(work(), line.receive))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert ended.is_set()
    assert line.listeners == 0
