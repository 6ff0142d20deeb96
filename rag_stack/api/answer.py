"""The engine's answer on its way to the client: sources early, citations when the text is complete."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic_core import from_json
from starlette.types import Message, Send

from rag_stack.api import encoding, sse
from rag_stack.api.engine import json_start, shape_error
from rag_stack.api.http import dumps, error_body
from rag_stack.api.usage import is_usage_frame, read_usage
from rag_stack.errors import EngineError
from rag_stack.protocol import ReplayRecord
from rag_stack.rag.ordering import Served
from rag_stack.rag.pipeline import Grounding
from rag_stack.types import Citation

# A stream whose chunks are all unlike is not asked for more.
_TEMPLATES: Final = 4
_DECODER: Final = json.JSONDecoder()

Kind = Literal["chat", "completion"]
Cite = Callable[[str], Awaitable[tuple[Citation, ...]]]
Tell = Callable[[Served], None]


@dataclass(frozen=True, slots=True)
class Dressing:
    """What is put on an answer, and how the answer's text is found in it.

    `tell` is told of the engine's tokens. `takes_out_usage`: the client did not ask for a stream's frame of usage.
    """

    kind: Kind
    release: str
    release_version: str
    grounding: Grounding
    cite: Cite
    with_text: bool
    with_messages: bool
    tell: Tell
    takes_out_usage: bool = False
    replay: ReplayRecord | None = None

    def rag(
        self, citations: Sequence[Citation] = (), *, last: bool = False, served: Served | None = None
    ) -> dict[str, Any]:
        """The `rag` object; the record of a request comes with the `last` one of a stream."""
        return encoding.rag_block(
            self.grounding,
            release=self.release,
            release_version=self.release_version,
            replay=self.replay if last else None,
            citations=citations,
            with_text=self.with_text,
            with_messages=self.with_messages,
            cached_tokens=None if served is None else served.cached_tokens,
        )

    def annotations(self, citations: Sequence[Citation]) -> list[dict[str, Any]]:
        """The citations as annotations."""
        return encoding.annotations(citations, self.grounding.sources)

    def extras(self) -> dict[str, Any]:
        """What LiteLLM's users read, where the request asked for the texts; else nothing."""
        if not self.with_text:
            return {}
        return {"provider_specific_fields": {"search_results": encoding.search_results(self.grounding.sources)}}

    async def dress(self, body: dict[str, Any]) -> dict[str, Any]:
        """A complete answer with annotations on every choice and `rag` for the first."""
        first: tuple[Citation, ...] = ()
        if (served := read_usage(body)) is not None:
            self.tell(served)
        for choice in body.get("choices", []):
            message = choice["message"] if self.kind == "chat" else choice
            citations = await self.cite(message.get("content" if self.kind == "chat" else "text") or "")
            if choice.get("index", 0) == 0:
                first = citations
            if self.kind == "chat":
                message["annotations"] = self.annotations(citations)
                message.update(self.extras())
        return {**body, "rag": self.rag(first, last=True, served=served)}


class AnswerSender:
    """A `send` for the engine. Errors before the first event keep their status; later ones are error frames."""

    def __init__(self, send: Send, dressing: Dressing) -> None:
        self._send = send
        self._dressing = dressing
        self._start: Message | None = None
        self._stream: _Stream | None = None
        self._body = b""
        self.streaming = False

    async def __call__(self, message: Message) -> None:
        """Take the engine's next message."""
        match message["type"]:
            case "http.response.start":
                self._start = message
                if message["status"] < 400 and _is_event_stream(message):
                    self._stream = _Stream(self._dressing)
            case "http.response.body" if self._stream is not None:
                await self._send_frames(self._stream, message)
            case "http.response.body":
                await self._send_whole(message)
            case _:
                await self._send(message)

    async def _send_whole(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body", False) or self._start is None:
            return
        if self._start["status"] >= 400:
            await self._send_json(shape_error(self._body, status=self._start["status"]))
            return
        body = _json_object(self._body, what="answer")
        await self._send_json(await self._dressing.dress(body))

    async def _send_json(self, body: dict[str, Any], *, status: int | None = None) -> None:
        if self._start is None:
            raise EngineError("the engine sent a body before its headers")
        data = dumps(body)
        start = self._start if status is None else {**self._start, "status": status}
        await self._send(json_start(start, data))
        await self._send({"type": "http.response.body", "body": data})

    async def _send_frames(self, stream: "_Stream", message: Message) -> None:
        more = message.get("more_body", False)
        frames = await stream.frames(message.get("body", b""), last=not more)
        if not self.streaming:
            if stream.failed_first is not None and not stream.closed:
                status = _status_of(stream.failed_first)
                await self._send_json(shape_error(dumps(stream.failed_first), status=status), status=status)
                stream.closed = True
            if stream.closed or (not frames and more) or self._start is None:
                return
            self.streaming = True
            await self._send(self._start)
        await self._send({"type": "http.response.body", "body": frames, "more_body": more})

    async def fail(self, error: EngineError) -> None:
        """End a stream that broke with an error frame, as clients expect it; first comes the chunk that waits."""
        waiting = b"" if self._stream is None else self._stream.end()
        await self._send({"type": "http.response.body", "body": waiting + sse.encode(error_body(error))})


@dataclass(frozen=True, slots=True)
class _Template:
    """A chunk in the middle of a choice's text without that text: the same from one to the next, most often.

    A chunk with the same bytes around one JSON string is the same chunk with that text in it: there is no need to parse
    the rest again.
    """

    before: bytes
    after: bytes
    texts: list[str]

    @classmethod
    def of(cls, data: bytes, text: str, texts: list[str], *, key: bytes) -> "_Template | None":
        """What is around a chunk's text, the value of `key`; None where that is not plain."""
        head = b'"%b":' % key
        # Within a JSON string a quote has a backslash in front, so this can be nothing but a key.
        start = data.find(head) + len(head)
        if data.count(head) != 1:
            return None
        try:
            found, length = _DECODER.raw_decode(data[start:].decode())
        except ValueError:
            return None
        after = data[start:].decode()[length:].encode()
        return cls(data[:start], after, texts) if found == text else None

    def text_of(self, data: bytes) -> str | None:
        """The text of a chunk that is like this one; None for any other."""
        before, after = self.before, self.after
        if not (data.startswith(before) and data.endswith(after)):
            return None
        try:
            text = from_json(data[len(before) : len(data) - len(after)])
        except ValueError:
            return None
        return text if isinstance(text, str) else None


class _Stream:
    """Dresses a stream of chunks. Chunks with nothing to add pass through byte for byte.

    A chunk that ends a choice waits for the next one, which brings the usage if it was the last choice: both come at
    once, and so the `rag` of the last such chunk tells what was cached. From a frame of usage that the client did not
    ask for it takes the engine's fingerprint, too, which vLLM puts on that frame and nowhere else.
    """

    def __init__(self, dressing: Dressing) -> None:
        self._dressing = dressing
        self._splitter = sse.FrameSplitter()
        self._texts: dict[int, list[str]] = {}
        self._template: _Template | None = None
        self._templates_left = _TEMPLATES
        self._annotated: dict[int, int] = {}
        self._ending: dict[str, Any] | None = None
        self._ends_first = False
        self._citations: tuple[Citation, ...] = ()
        self.failed_first: dict[str, Any] | None = None
        self.closed = False

    async def frames(self, data: bytes, *, last: bool) -> bytes:
        """What to send for the next piece of the engine's stream."""
        if not last and self._passes(data):
            return data
        out = [await self._frame(frame) for frame in self._splitter.feed(data)]
        if last:
            out += [self.end(), self._splitter.rest()]
        return b"".join(out)

    def _passes(self, data: bytes) -> bool:
        """Whether a piece is one chunk in the middle of one choice's text, which is noted; most are.

        False says nothing: whatever is not plainly that is looked at with care.
        """
        if self._ending is not None or self._splitter.rest():
            return False
        template = self._template
        if template is not None and (text := template.text_of(data)) is not None:
            template.texts.append(text)
            return True
        if not data.startswith(b"data: {"):
            return False
        if data.find(b"\n") != len(data) - 2 or data[-1] != 10 or b"\r" in data:
            return False
        try:
            chunk = from_json(data[6:])
        except ValueError:
            return False
        choices = chunk.get("choices")
        if "error" in chunk or not isinstance(choices, list) or len(choices) != 1:
            return False
        choice = choices[0]
        if not isinstance(choice, dict) or choice.get("finish_reason") is not None:
            return False
        texts = self._texts.get(choice.get("index", 0))
        if texts is None:
            return False
        texts.append(text := self._text(choice))
        if self._templates_left and text:
            self._templates_left -= 1
            self._template = _Template.of(
                data, text, texts, key=b"text" if self._dressing.kind == "completion" else b"content"
            )
        return True

    def end(self, served: Served | None = None) -> bytes:
        """The chunk that waits, if one does."""
        chunk, self._ending = self._ending, None
        first, self._ends_first = self._ends_first, False
        if chunk is None:
            return b""
        if first or (served is not None and served.cached_tokens is not None):
            chunk["rag"] = self._dressing.rag(self._citations, last=True, served=served)
        return sse.encode(chunk)

    async def _frame(self, frame: bytes) -> bytes:
        data = sse.data_of(frame)
        if data is None or data == sse.DONE:
            return self.end() + frame
        chunk = _json_object(data, what="stream")
        if "error" in chunk:
            if not self._texts:
                self.failed_first = chunk
            return self.end() + sse.encode(shape_error(data, status=_status_of(chunk)))
        if is_usage_frame(chunk):
            return self._use(chunk) + (b"" if self._dressing.takes_out_usage else frame)
        before = self.end()
        changed = await self._dress(chunk)
        if self._ending is chunk:
            return before
        return before + (sse.encode(chunk) if changed else frame)

    def _use(self, chunk: dict[str, Any]) -> bytes:
        """The chunk that has waited for this one's usage."""
        served = read_usage(chunk)
        if served is not None:
            self._dressing.tell(served)
        fingerprint = chunk.get("system_fingerprint")
        if self._dressing.takes_out_usage and self._ending is not None and fingerprint is not None:
            self._ending["system_fingerprint"] = fingerprint
        return self.end(served)

    async def _dress(self, chunk: dict[str, Any]) -> bool:
        """Add to a chunk what it is the right one for; say whether it was changed."""
        changed = False
        for choice in chunk.get("choices", []):
            index = choice.get("index", 0)
            if index not in self._texts:
                self._texts[index] = []
                self._announce(chunk, choice, index)
                changed = True
            self._texts[index].append(self._text(choice))
            if choice.get("finish_reason") is not None:
                await self._finish(chunk, choice, index)
                changed = True
        return changed

    def _text(self, choice: dict[str, Any]) -> str:
        if self._dressing.kind == "completion":
            return choice.get("text") or ""
        return (choice.get("delta") or {}).get("content") or ""

    def _announce(self, chunk: dict[str, Any], choice: dict[str, Any], index: int) -> None:
        """The sources, on the first chunk: they are known before the first word."""
        rag = self._dressing.rag()
        entries = [{"type": "source", "source": source} for source in rag["sources"]]
        self._annotate(choice, index, entries)
        if self._dressing.kind == "chat" and (extras := self._dressing.extras()):
            choice.setdefault("delta", {}).update(extras)
        if index == 0:
            chunk["rag"] = rag

    async def _finish(self, chunk: dict[str, Any], choice: dict[str, Any], index: int) -> None:
        citations = await self._dressing.cite("".join(self._texts[index]))
        self._annotate(choice, index, self._dressing.annotations(citations))
        self._ending = chunk
        if index == 0:
            self._ends_first, self._citations = True, citations

    def _annotate(self, choice: dict[str, Any], index: int, entries: list[dict[str, Any]]) -> None:
        """Add to `delta.annotations`. Clients merge lists of deltas by `index`, so it counts on over all chunks."""
        if self._dressing.kind == "completion" or not entries:
            return
        start = self._annotated.get(index, 0)
        numbered = [{"index": n, **entry} for n, entry in enumerate(entries, start=start)]
        delta = choice.setdefault("delta", {})
        delta["annotations"] = [*(delta.get("annotations") or []), *numbered]
        self._annotated[index] = start + len(entries)


def _json_object(data: bytes, *, what: str) -> dict[str, Any]:
    try:
        body = json.loads(str(data, "utf-8"))  # of bytes it would guess the encoding, for each token
    except ValueError as exc:
        raise EngineError(f"the engine's {what} is not JSON") from exc
    if not isinstance(body, dict):
        raise EngineError(f"the engine's {what} is not a JSON object")
    return body


def _is_event_stream(start: Message) -> bool:
    return any(k.lower() == b"content-type" and v.startswith(b"text/event-stream") for k, v in start["headers"])


def _status_of(chunk: dict[str, Any]) -> int:
    error = chunk.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
