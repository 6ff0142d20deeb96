"""A stream that is mostly passed on unread says, byte for byte, what one says whose every frame is looked at."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json
from starlette.types import Message

from rag_stack.api import answer, sse
from rag_stack.api.answer import AnswerSender, Dressing, Kind
from rag_stack.api.usage import read_usage
from rag_stack.errors import EngineError
from rag_stack.rag.ordering import Served
from rag_stack.rag.pipeline import Grounding
from rag_stack.types import Citation, Hit, Passage, Source

Ends = Literal["afterwards", "at once", "never"]
_SOURCE = Source(1, Hit(Passage("a-0", "a", "A keeper climbs.", "Lamps", "", 0, 16), 0.5, store="documents"))
_GROUNDING = Grounding(({"role": "user", "content": "Who?"},), (_SOURCE,), {"documents": "v1"})
_TEXTS = st.sampled_from(["", "A", " keeper", "é 灯\u2028", "{\n\n}", '"data: {"', "\\", "\r\n"])
_INDEX = st.integers(0, 1)
_TOOL_CALL = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": "\n\n"}'}}]}
_USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


@dataclass
class Heard:
    """What a client got of a stream, and what was told on the way."""

    start: Message | None = None
    body: bytes = b""
    cited: list[str] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        """As a server has it."""
        if message["type"] == "http.response.start":
            assert self.start is None
            self.start = message
        self.body += message.get("body", b"")

    async def cite(self, text: str) -> tuple[Citation, ...]:
        """A citation that depends on the text."""
        self.cited.append(text)
        return (Citation("marker", 1, 0, len(text), "A keeper climbs.", 0, 16),) if text else ()


def _choice(kind: Kind, index: int, text: str, **more: Any) -> dict[str, Any]:
    said = {"text": text} if kind == "completion" else {"delta": {"content": text}}
    return {"index": index, "finish_reason": None, **said, **more}


# What engines send most, and some of what none should; a choice between strategies would not weigh them.
_SORTS = st.sampled_from(
    [*["middle"] * 8, *["two", "tools", "more", "end", "mixed"] * 2, "no choice", "rare", "spoilt"]
)
_MORE = st.sampled_from([{"usage": _USAGE}, {"usage": None}, {"error": {"message": "no", "code": 400}}])
_RARE = st.sampled_from(
    [
        b": ping\n\n",
        b"data: [DONE]\n\n",
        sse.encode({"choices": [], "usage": _USAGE, "system_fingerprint": "fp"}),
        sse.encode({"error": {"message": "broke", "code": 503}}),
        b"event: x\ndata: {}\n\n",
    ]
)
_SPOILT = st.sampled_from([b"data: {not JSON\n\n", b"data: [1]\n\n", b"data: \xff{}\n\n"])


@st.composite
def _frames(draw: st.DrawFn, kind: Kind) -> bytes:
    """A frame, written in one of the ways in which it can be."""
    sort, index, text = draw(_SORTS), draw(_INDEX), draw(_TEXTS)
    match sort:
        case "rare":
            return draw(_RARE)
        case "spoilt":
            return draw(_SPOILT)
        case "two":
            choices = [_choice(kind, 0, text), _choice(kind, 1, text)]
        case "tools":
            choices = [{"index": index, "delta": _TOOL_CALL, "text": None}]
        case "end":
            choices = [_choice(kind, index, text, finish_reason="stop")]
        case "no choice":
            choices = []
        case _:
            choices = [_choice(kind, index, text)]
    body = {"id": "x", "choices": choices, **(draw(_MORE) if sort == "more" else {})}
    # As vLLM writes it, most often.
    separators = draw(st.sampled_from([(",", ":"), (",", ":"), (",", ":"), None]))
    data = json.dumps(body, ensure_ascii=draw(st.booleans()), separators=separators).encode()
    if sort != "mixed":
        return b"data: " + data + b"\n\n"
    split = data.replace(b",", b",\n", 1)
    written = [b"data: %b\r\n\n" % data, b"event: x\ndata: %b\n\n" % data, b"data: %b\n\n" % split]
    return draw(st.sampled_from(written))


@st.composite
def _pieces(draw: st.DrawFn, kind: Kind) -> list[bytes]:
    """A stream, cut behind most of its frames, as engines send it, behind some lines, and anywhere else."""
    frames = [sse.encode({"choices": [_choice(kind, n, "")]}) for n in range(draw(st.integers(0, 2)))]
    frames += draw(st.lists(_frames(kind), min_size=1, max_size=14))
    if draw(st.sampled_from([False, False, False, True])):
        frames = [frame.replace(b"\n", b"\r\n") for frame in frames]
    stream = b"".join(frames)
    whole = set(accumulate(map(len, frames)))
    lines = {at for at in range(len(stream)) if stream[at - 1 : at] == b"\n"}
    cuts = {at for at in sorted(whole) if draw(st.sampled_from([True, True, True, True, False]))}
    cuts |= set(draw(st.lists(st.sampled_from(sorted(lines | whole)), max_size=2)))
    cuts |= set(draw(st.lists(st.integers(0, len(stream)), max_size=2))) | {0, len(stream)}
    return [stream[start:end] for start, end in pairwise(sorted(cuts))]


async def _sent(pieces: Sequence[bytes], kind: Kind, *, takes_out: bool, ends: Ends) -> Heard:
    heard = Heard()
    dressing = Dressing(
        kind=kind,
        release="r",
        release_version="v",
        grounding=_GROUNDING,
        cite=heard.cite,
        with_text=True,
        with_messages=False,
        tell=heard.served.append,
        takes_out_usage=takes_out,
    )
    sender = AnswerSender(heard.send, dressing)
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    try:
        await sender({"type": "http.response.start", "status": 200, "headers": headers})
        for number, piece in enumerate(pieces, start=1):
            more = ends != "at once" or number < len(pieces)
            await sender({"type": "http.response.body", "body": piece, "more_body": more})
        if ends == "afterwards":
            await sender({"type": "http.response.body", "body": b"", "more_body": False})
    except EngineError as error:
        await sender.fail(error)
    return heard


@contextmanager
def _looked_at_with_care() -> Iterator[None]:
    with patch.object(answer._Stream, "_passes", lambda *_: False):
        yield


@pytest.mark.parametrize("kind", ["chat", "completion"])
@settings(max_examples=120, deadline=None)
@given(data=st.data(), takes_out=st.booleans(), ends=st.sampled_from(["afterwards", "at once", "never"]))
def test_what_passes_unread_is_what_care_would_send(
    kind: Kind, data: st.DataObject, takes_out: bool, ends: Ends
) -> None:
    pieces = data.draw(_pieces(kind))
    quick = asyncio.run(_sent(pieces, kind, takes_out=takes_out, ends=ends))
    with _looked_at_with_care():
        assert asyncio.run(_sent(pieces, kind, takes_out=takes_out, ends=ends)) == quick


def test_the_middle_of_a_text_passes_unread_and_counts_for_its_citations() -> None:
    chunks = [{"choices": [_choice("chat", 0, text)]} for text in ("A", " keeper", " climbs.")]
    end = {"choices": [_choice("chat", 0, "", finish_reason="stop")]}
    pieces = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in [*chunks, end]]
    seen: list[bytes] = []
    careful = answer._Stream._frame

    async def noted(stream: Any, frame: bytes) -> bytes:
        seen.append(frame)
        return await careful(stream, frame)

    with patch.object(answer._Stream, "_frame", noted):
        heard = asyncio.run(_sent(pieces, "chat", takes_out=True, ends="afterwards"))
    assert seen == [pieces[0], pieces[3]]
    assert heard.cited == ["A keeper climbs."]
    assert b"".join(pieces[1:3]) in heard.body


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_of_chunks_that_are_alike_the_text_alone_is_parsed(kind: Kind) -> None:
    texts = ["A", " keeper", ' "climbs"', "\\ \u706f\n", "", ',"content":', " twice"]
    choices = [*[_choice(kind, 0, text) for text in texts], _choice(kind, 1, "other"), _choice(kind, 0, " end")]
    chunks = [{"id": "x", "choices": [choice], "usage": None} for choice in choices]
    pieces = [b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n" for chunk in chunks]
    read: list[bytes] = []

    def noted(data: bytes) -> Any:
        read.append(bytes(data))
        return from_json(data)

    with patch.object(answer, "from_json", noted):
        heard = asyncio.run(_sent(pieces, kind, takes_out=False, ends="never"))
    assert b"".join(pieces[1:7]) in heard.body
    assert heard.body.endswith(pieces[8])
    small = [json.dumps(text).encode() for text in [*texts[2:], " end"]]
    assert [data for data in read if len(data) < 30] == small, read


def test_the_engines_tokens_are_told_once() -> None:
    usage = {"choices": [], "usage": _USAGE}
    pieces = [sse.encode({"choices": [_choice("chat", 0, "A")]}), sse.encode(usage)]
    heard = asyncio.run(_sent(pieces, "chat", takes_out=True, ends="afterwards"))
    assert heard.served == [read_usage(usage)]
    assert heard.body.count(b"data: ") == 1


def test_an_error_before_all_else_is_answered_once() -> None:
    broke = sse.encode({"error": {"message": "broke", "code": 503}})
    heard = asyncio.run(_sent([broke, b"data: [DONE]\n\n"], "chat", takes_out=True, ends="afterwards"))
    assert heard.start is not None
    assert heard.start["status"] == 503
    assert json.loads(heard.body)["error"]["message"] == "broke"


def test_a_piece_that_goes_on_with_a_frame_is_no_frame() -> None:
    chunk = sse.encode({"choices": [_choice("chat", 0, "A")]})
    pieces = [chunk, b"event: x\n", chunk, chunk]
    quick = asyncio.run(_sent(pieces, "chat", takes_out=True, ends="afterwards"))
    assert quick.body.endswith(b"".join(pieces[1:]))
