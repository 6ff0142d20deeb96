"""Frames come out whole, however the bytes come in."""

import json

from hypothesis import given
from hypothesis import strategies as st

from rag_stack.api import sse


def _split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = sse.FrameSplitter()
    frames = [frame for piece in pieces for frame in splitter.feed(piece)]
    return frames, splitter.rest()


STREAM = b'data: {"a": "\xc3\xa9"}\n\n: a comment\n\nevent: x\ndata: 1\ndata: 2\n\ndata: [DONE]\n\n'
WHOLE = [frame + b"\n\n" for frame in STREAM.split(b"\n\n")[:-1]]


@given(st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_any_cut_gives_the_same_frames(sizes: list[int], crlf: bool) -> None:
    data = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    pieces, at = [], 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
    assert _split(pieces) == (WHOLE, b"")


def test_the_rest_is_kept() -> None:
    assert _split([b"data: 1\n\ndata: 2", b"\n"]) == ([b"data: 1\n\n"], b"data: 2\n")


def test_data() -> None:
    assert sse.data_of(b": a comment\n\n") is None
    assert sse.data_of(b"data:1\n\n") == b"1"
    assert sse.data_of(b"event: x\ndata: 1\ndata: 2\n\n") == b"1\n2"
    assert sse.data_of(b"data: [DONE]\n\n") == sse.DONE


def test_encode() -> None:
    frame = sse.encode({"a": "é\n\n"})
    assert _split([frame]) == ([frame], b"")
    assert json.loads(sse.data_of(frame) or b"") == {"a": "é\n\n"}
