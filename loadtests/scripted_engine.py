"""An engine that generates by a clock and not by a model: OpenAI's routes, a batch of slots, a fixed rate.

For load tests and fault tests whose subject is what stands around the engine. A request waits for one of `slots`, then
for `prefill_s`, then gets a token each `token_s`. A `device` reads prompts in the place of `prefill_s`, and has the
prefixes of earlier ones. Greedy answers are a function of the last message alone. A request's `seed` and `temperature`
are taken and ignored, as greedy decoding ignores them.

`python -m loadtests.scripted_engine --port 8100 --max-tokens 64` serves one alone; `GET /prompts` tells the newest.
"""

import argparse
import asyncio
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loadtests.scripted_prefill import Device, PrefixCache, Read
from rag_stack.api.http import ClientDisconnectedError, while_connected

Json = dict[str, Any]
# Engine settings of a release that only this engine knows.
SCRIPT = "script"
FAILS_TO_START = "fails_to_start"
_KEPT_PROMPTS = 16
_WORDS = ("the", "keeper", "climbs", "two", "hundred", "steps", "every", "night", "and", "burns", "whale", "oil")


@dataclass(frozen=True, slots=True)
class Script:
    """How fast the engine is. `start_s` is how long it takes to start."""

    start_s: float = 0.0
    slots: int = 8
    prefill_s: float = 0.02
    token_s: float = 0.02
    max_tokens: int = 16
    device: Device | None = None

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        """What `dataclasses.asdict` gave."""
        device = fields.get("device")
        return cls(**{**fields, "device": Device(**device) if device else None})


class ScriptedEngine:
    """The engine, and the switches that a fault test turns: `dead` as a killed core is, `stuck` as a hung one is."""

    def __init__(self, script: Script, *, model: str) -> None:
        self.script = script
        self.model = model
        self.dead = False
        self.unstuck = asyncio.Event()
        self.unstuck.set()
        # What the newest requests asked, oldest first: the messages as JSON, or the prompt.
        self.prompts: deque[str] = deque(maxlen=_KEPT_PROMPTS)
        self._slots = asyncio.Semaphore(script.slots)
        self._prefixes = PrefixCache(script.device) if script.device else None

    def app(self) -> Starlette:
        """The engine's HTTP app."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completion, methods=["POST"]),
                Route("/version", self._version, methods=["GET"]),
                Route("/health", self._version, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/prompts", self._prompts, methods=["GET"]),
            ]
        )

    async def _version(self, _: Request) -> JSONResponse:
        return JSONResponse({"version": "scripted"})

    async def _models(self, _: Request) -> JSONResponse:
        card = {"id": self.model, "object": "model", "created": 0, "owned_by": "script"}
        return JSONResponse({"object": "list", "data": [card]})

    async def _prompts(self, _: Request) -> JSONResponse:
        return JSONResponse(list(self.prompts))

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        return await self._answer(request, body, json.dumps(body["messages"]), chat=True)

    async def _completion(self, request: Request) -> Response:
        body = await request.json()
        return await self._answer(request, body, json.dumps(body["prompt"]), chat=False)

    async def _answer(self, request: Request, body: Json, prompt: str, *, chat: bool) -> Response:
        if self.dead:
            return JSONResponse({"error": {"message": "the engine is dead", "type": "server_error"}}, status_code=500)
        self.prompts.append(prompt)
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or self.script.max_tokens
        asked = _Asked(prompt, words_for(prompt, count=wanted), salt=str(body.get("cache_salt") or ""))
        head = {"id": f"chatcmpl-{time.time_ns()}", "created": int(time.time()), "model": self.model}
        if self._prefixes is not None:
            # Who answered, in the field in which vLLM tells of its configuration.
            head["system_fingerprint"] = f"pid-{os.getpid()}"
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            frames = self._stream(head, asked, chat=chat, usage=usage)
            return StreamingResponse(frames, media_type="text/event-stream")
        try:
            await while_connected(self._finish(asked), request.receive)
        except ClientDisconnectedError:
            return Response(status_code=499)
        if self.dead:
            return JSONResponse({"error": {"message": "the engine died", "type": "server_error"}}, status_code=500)
        text = " ".join(asked.words)
        choice: Json = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        kind = "chat.completion" if chat else "text_completion"
        choices = [{"index": 0, "finish_reason": "length", **choice}]
        return JSONResponse({**head, "object": kind, "choices": choices, "usage": asked.usage()})

    async def _finish(self, asked: "_Asked") -> None:
        async for _ in self._generate(asked):
            pass

    async def _stream(self, head: Json, asked: "_Asked", *, chat: bool, usage: bool) -> AsyncIterator[str]:
        head = {**head, "object": "chat.completion.chunk" if chat else "text_completion"}
        first = True
        async for word in self._generate(asked):
            text = word if first else f" {word}"
            piece: Json = {"delta": {"content": text}} if chat else {"text": text}
            if chat and first:
                piece["delta"]["role"] = "assistant"
            first = False
            yield _frame({**head, "choices": [{"index": 0, "finish_reason": None, **piece}]})
        if self.dead:
            yield _frame({"error": {"message": "the engine died", "type": "server_error", "code": 500}})
        else:
            last: Json = {"delta": {}} if chat else {"text": ""}
            yield _frame({**head, "choices": [{"index": 0, "finish_reason": "length", **last}]})
            if usage:
                yield _frame({**head, "choices": [], "usage": asked.usage()})
        yield "data: [DONE]\n\n"

    async def _generate(self, asked: "_Asked") -> AsyncIterator[str]:
        async with self._slots:
            if self._prefixes is None:
                await asyncio.sleep(self.script.prefill_s)
            else:
                asked.read = await self._prefixes.read(asked.prompt, salt=asked.salt)
            for word in asked.words:
                await self.unstuck.wait()
                if self.dead:
                    return
                yield word
                await asyncio.sleep(self.script.token_s)


@dataclass(slots=True)
class _Asked:
    """One request on its way through."""

    prompt: str
    words: list[str]
    salt: str = ""
    read: Read | None = None

    def usage(self) -> Json:
        tokens = self.read.prompt_tokens if self.read else len(self.prompt.split())
        details = {"prompt_tokens_details": {"cached_tokens": self.read.cached_tokens}} if self.read else {}
        made = len(self.words)
        return {"prompt_tokens": tokens, "completion_tokens": made, "total_tokens": tokens + made, **details}


def words_for(prompt: str, *, count: int) -> list[str]:
    """The answer to a prompt, the same each time."""
    digest = hashlib.blake2b(prompt.encode()).digest()
    return [_WORDS[digest[n % len(digest)] % len(_WORDS)] for n in range(count)]


def _frame(body: Json) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


def main() -> None:
    """Serve the engine alone, until SIGTERM."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prefill-s", type=float, default=0.0)
    parser.add_argument("--token-s", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer whose request does not say")
    options = parser.parse_args()
    script = Script(0.0, options.slots, options.prefill_s, options.token_s, options.max_tokens)
    app = ScriptedEngine(script, model=options.model).app()
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
