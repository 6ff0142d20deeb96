"""Records what `rag-stack plan kv` reads, where RAG_STACK_KV_TRACE names a directory: one file of JSON lines a replica.

A line holds lengths, times, and hashes of the prompt's beginnings, no text (releases/kv_trace.py has the fields). The
prompts are tokenized again in a thread of their own, after the answer: about a millisecond of CPU for 1,000 tokens.
Nothing waits for that: what the thread cannot keep up with is left out and counted, and where the file cannot be
written, or is full, the recording ends. What is read ahead of a request is no request, and not in it.
"""

import hashlib
import json
import logging
import os
import queue
import socket
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.api import sse
from rag_stack.api.ahead import AHEAD
from rag_stack.generation.tokenizer import GeneratorTokenizer
from rag_stack.releases.kv_trace import to_line

VARIABLE: Final = "RAG_STACK_KV_TRACE"
# Small, so that an engine's block of any size is made of whole ones.
BLOCK_TOKENS: Final = 16
_LIMIT_BYTES: Final = 256 * 1024 * 1024
_WAITING: Final = 1024
_WAITING_BYTES: Final = 64 * 1024 * 1024
# Of an answer that is read for its `usage`; one that is longer is counted by its frames, or not at all.
_ANSWER_BYTES: Final = 4 * 1024 * 1024
_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_LOG = logging.getLogger(__name__)

Encode = Callable[[Mapping[str, Any]], Sequence[int]]


@dataclass(slots=True)
class _Exchange:
    """One request and what became of it, as it is seen on its way."""

    body: bytes
    arrived_s: float
    status: int = 0
    first_s: float | None = None
    ended_s: float = 0.0
    frames: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)


class KvTraceRecorder:
    """Writes one file. `encode` gives the tokens of a request's prompt, as the engine sees them."""

    def __init__(
        self, path: Path, encode: Encode, *, limit_bytes: int = _LIMIT_BYTES, waiting_bytes: int = _WAITING_BYTES
    ) -> None:
        self.path = path
        self.left_out = 0
        self._encode = encode
        self._limit_bytes = limit_bytes
        self._waiting_bytes = waiting_bytes
        # Bounded by `_take`, so that the end never has to wait for room.
        self._waiting: queue.SimpleQueue[_Exchange | None] = queue.SimpleQueue()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._write_all, name="kv-trace", daemon=True)
        self._thread.start()

    def around(self, engine: ASGIApp) -> ASGIApp:
        """The engine's app, whose completions are recorded."""

        async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
            if self._ended or scope["type"] != "http" or scope["path"] not in _PATHS or scope.get(AHEAD):
                await engine(scope, receive, send)
                return
            exchange = _Exchange(b"", time.time())
            await engine(scope, _Asked(exchange, receive), _Answered(exchange, send, self._take))

        return recorded

    def close(self) -> None:
        """Write what waits, and end. Blocking."""
        self._waiting.put(None)
        self._thread.join()

    def _take(self, exchange: _Exchange) -> None:
        size = len(exchange.body)
        with self._lock:
            if exchange.status != 200 or self._ended:
                return
            if self._waiting.qsize() >= _WAITING or self._held_bytes + size > self._waiting_bytes:
                self.left_out += 1
                return
            self._held_bytes += size
            self._waiting.put(exchange)

    def _next(self) -> _Exchange | None:
        exchange = self._waiting.get()
        if exchange is not None:
            with self._lock:
                self._held_bytes -= len(exchange.body)
        return exchange

    def _write_all(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                while (exchange := self._next()) is not None:
                    if (line := self._line(exchange)) is not None:
                        file.write(line + "\n")
                        # A process that is killed loses what it has not handed over.
                        file.flush()
                    if file.tell() > self._limit_bytes:
                        _LOG.warning("the trace %s has %d bytes: nothing more is recorded", self.path, file.tell())
                        break
        except OSError as exc:
            _LOG.warning("no more requests are recorded to %s: %s", self.path, exc)
        except Exception:
            _LOG.exception("no more requests are recorded to %s", self.path)
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            # What still waits would only be held.
            while not self._waiting.empty():
                self._waiting.get()
        if self.left_out:
            _LOG.warning("%d requests came too fast and are not in the trace %s", self.left_out, self.path)

    def _line(self, exchange: _Exchange) -> str | None:
        try:
            body = json.loads(exchange.body)
            return self._told(exchange, body, self._encode(body))
        except Exception:  # whatever a tokenizer or a template refuses: the engine has answered it all the same
            _LOG.debug("a request is not in the trace: it cannot be put into a line", exc_info=True)
            return None

    def _told(self, exchange: _Exchange, body: Mapping[str, Any], tokens: Sequence[int]) -> str:
        usage = exchange.usage
        details = usage.get("prompt_tokens_details") or {}
        first_s = exchange.first_s if body.get("stream") is True else None
        return to_line(
            timestamp_ms=exchange.arrived_s * 1e3,
            input_length=len(tokens),
            output_length=int(usage.get("completion_tokens") or exchange.frames),
            hash_ids=block_hashes(tokens, salt=str(body.get("cache_salt") or "")),
            block_size=BLOCK_TOKENS,
            duration_ms=(exchange.ended_s - exchange.arrived_s) * 1e3,
            ttft_ms=None if first_s is None else (first_s - exchange.arrived_s) * 1e3,
            cached_tokens=details.get("cached_tokens"),
        )


def open_kv_trace(model_directory: Path, environ: Mapping[str, str] = os.environ) -> KvTraceRecorder | None:
    """The recorder that the environment asks for, of this process; None where it asks for none."""
    directory = environ.get(VARIABLE)
    if not directory:
        return None
    path = Path(directory) / f"kv-{socket.gethostname()}-{os.getpid()}.jsonl"
    _LOG.warning("requests are recorded to %s, as lengths and hashes", path)
    return KvTraceRecorder(path, PromptEncoder(GeneratorTokenizer(model_directory)))


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """The tokens of a request's prompt: of its messages under the chat template, or of its one text."""

    tokenizer: GeneratorTokenizer

    def __call__(self, body: Mapping[str, Any]) -> Sequence[int]:
        """Raises KeyError, ValueError or InvalidRequestError for a body that has no such prompt."""
        if "messages" in body:
            return self.tokenizer.encode(body["messages"], tools=body.get("tools"))
        prompt = body["prompt"]
        prompt = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
        if not isinstance(prompt, str):
            raise ValueError("a prompt of several texts, or of tokens, is not recorded")
        return self.tokenizer.encode_text(prompt)


def block_hashes(tokens: Sequence[int], *, salt: str = "") -> list[int]:
    """A number for each whole block of a prompt, of its tokens and all before them; 52 bits, which any JSON keeps.

    As in vLLM, nothing is shared between requests of different salts.
    """
    found, before = [], salt.encode()
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = array("q", tokens[start : start + BLOCK_TOKENS]).tobytes()
        before = hashlib.blake2b(before + block, digest_size=8).digest()
        found.append(int.from_bytes(before, "big") >> 12)
    return found


@dataclass(slots=True)
class _Asked:
    """A `receive` that keeps the request's body."""

    exchange: _Exchange
    receive: Receive

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.exchange.body += message.get("body", b"")
        return message


@dataclass(slots=True)
class _Answered:
    """A `send` that counts the tokens of an answer, and tells when it is whole."""

    exchange: _Exchange
    send: Send
    done: Callable[[_Exchange], None]
    _stream: bool = False
    _splitter: sse.FrameSplitter = field(default_factory=sse.FrameSplitter)
    _whole: bytes = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.exchange.status = message["status"]
            types = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._stream = any(value.startswith(b"text/event-stream") for value in types)
        await self.send(message)
        if message["type"] != "http.response.body":
            return
        data = message.get("body", b"")
        if self._stream:
            for frame in self._splitter.feed(data):
                self._read_frame(frame)
        elif len(self._whole) < _ANSWER_BYTES:
            self._whole += data
        if not message.get("more_body", False):
            if not self._stream:
                self._read(self._whole)
            self.exchange.ended_s = time.time()
            self.done(self.exchange)

    def _read_frame(self, frame: bytes) -> None:
        data = sse.data_of(frame)
        if data is not None and data != sse.DONE:
            self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            body = json.loads(data)
            choices = body.get("choices") or []
            spoken = any(each.get("text") or (each.get("delta") or {}).get("content") for each in choices)
        except (ValueError, AttributeError, TypeError):
            return
        if spoken:
            self.exchange.frames += 1
            if self.exchange.first_s is None:
                self.exchange.first_s = time.time()
        if body.get("usage"):
            self.exchange.usage = body["usage"]
