"""A tiny deterministic engine: the routes and wire shapes of vLLM 0.29's app, without a model.

It answers with the first sentence of the first document in the prompt, or "I do not know.". A test steers it through
`app.state` (see `build_engine`) or with a line `say: <answer>` in the last user message.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.completion import Completion, Json

_DOCUMENT = re.compile(r"<document\b[^>]*>\s*(.*?)\s*</document>", re.DOTALL)
_SENTENCE = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)
_SAY = re.compile(r"^say:[ \t]*(.*)$", re.MULTILINE)
_TOKEN = re.compile(r"\s*\S+|\s+$")


def build_engine(model: str = "tiny", *, max_model_len: int = 8192) -> Starlette:
    """The app. What a test may read and set on `app.state`:

    requests                every JSON body received, oldest first (with its path in `paths`)
    aborted                 threading.Event, set when a client went away before its answer was complete
    answer                  str | None: the answer to everything
    chunk_chars             characters a streamed content chunk holds; 1 splits every marker
    fail_after_chunks       int | None: after so many content chunks comes an error frame; 0: it is the first frame
    crash_after_chunks      int | None: after so many content chunks the app raises
    stall_after_chunks      int | None: after so many content chunks it waits until the client goes away
    prompt_tokens_details   None, as vLLM gives it by default, or {"cached_tokens": n}
    error                   None or (status, message): every completion is refused so
    """
    app = Starlette(routes=_routes())
    app.state.model, app.state.max_model_len = model, max_model_len
    app.state.requests, app.state.paths = [], []
    app.state.aborted = threading.Event()
    app.state.answer = app.state.prompt_tokens_details = app.state.error = None
    app.state.fail_after_chunks = app.state.crash_after_chunks = app.state.stall_after_chunks = None
    app.state.chunk_chars = 4
    app.state.vocabulary = Vocabulary()
    return app


class Vocabulary:
    """A tokenizer that learns: a word with the space before it is a token, numbered as it first appears."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self._ids.setdefault(token, len(self._ids)) for token in _TOKEN.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        words = list(self._ids)
        return "".join(words[i] for i in ids)

    def count(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of the messages under the template: fits `rag_stack.rag.prompt.Tokenizer`."""
        return len(self.encode(render(messages)))

    def count_text(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.encode(text))


def render(messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat template."""
    return "".join(f"<|{m.get('role')}|>\n{text_of(m)}\n" for m in messages) + "<|assistant|>\n"


def text_of(message: Mapping[str, Any]) -> str:
    """A message's text, from a string or from parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


def answer_to(prompt: str, *, question: str) -> str:
    """What the engine says: a function of the prompt alone."""
    if said := _SAY.findall(question):
        return str(said[-1])
    if document := _DOCUMENT.search(prompt):
        sentence = _SENTENCE.match(document[1])
        return sentence[0] if sentence else document[1]
    return "I do not know."


@dataclass(frozen=True)
class _Refusal(Exception):  # noqa: N818
    status: int
    message: str
    type: str
    param: str | None = None

    def body(self) -> Json:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}


class _Answer(Response):
    """Sends a completion, streamed or whole, and notices a client that goes away."""

    def __init__(self, completion: Completion, state: Any, *, stream: bool, include_usage: bool) -> None:
        super().__init__()
        self._completion = completion
        self._state = state
        self._stream = stream
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnect(receive))
        try:
            if self._stream:
                await self._send_stream(send, gone)
            elif self._state.stall_after_chunks is not None:
                await self._stall(gone)
            else:
                await JSONResponse(self._completion.whole())(scope, receive, send)
        except (asyncio.CancelledError, OSError):
            self._state.aborted.set()
            raise
        finally:
            gone.cancel()

    async def _stall(self, gone: "asyncio.Task[None]") -> None:
        await gone
        self._state.aborted.set()

    async def _send_stream(self, send: Send, gone: "asyncio.Task[None]") -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sent, state = 0, self._state
        if state.fail_after_chunks == 0:
            await self._send_failure(send)
            return
        for is_content, chunk in self._completion.chunks(
            chunk_chars=state.chunk_chars, include_usage=self._include_usage
        ):
            if is_content:
                if sent == state.stall_after_chunks:
                    await self._stall(gone)
                    return
                if sent == state.crash_after_chunks:
                    raise RuntimeError("the engine crashed in the middle of an answer")
                if sent == state.fail_after_chunks:
                    await self._send_failure(send)
                    return
                sent += 1
            await self._send_frame(send, json.dumps(chunk))
            if gone.done():
                state.aborted.set()
                return
        if sent == state.crash_after_chunks:
            raise RuntimeError("the engine crashed behind its answer")
        if self._include_usage:
            await self._send_frame(send, json.dumps(self._completion.usage_chunk()))
        await self._send_frame(send, "[DONE]", more=False)

    async def _send_failure(self, send: Send) -> None:
        await self._send_frame(send, json.dumps(_Refusal(500, "the engine failed", "InternalServerError").body()))
        await self._send_frame(send, "[DONE]", more=False)

    async def _send_frame(self, send: Send, data: str, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})
        await asyncio.sleep(0)  # let the listener hear of a closed client


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _routes() -> list[Route]:
    admin = ["/scale_elastic_ep", "/is_scaling_elastic_ep", "/generative_scoring", "/inference/v1/generate"]
    admin += ["/v1/messages", "/v1/responses", "/ping"]
    return [
        Route("/v1/chat/completions", _complete, methods=["POST"]),
        Route("/v1/completions", _complete, methods=["POST"]),
        Route("/invocations", _complete, methods=["POST"]),
        Route("/tokenize", _tokenize, methods=["POST"]),
        Route("/detokenize", _detokenize, methods=["POST"]),
        Route("/v1/models", _models),
        Route("/version", lambda _: JSONResponse({"version": "0.29.0"})),
        Route("/health", lambda _: Response()),
        Route("/load", lambda _: JSONResponse({"server_load": 0})),
        Route("/metrics", lambda _: PlainTextResponse("vllm:num_requests_running 0.0\n")),
        Route("/docs", lambda _: HTMLResponse("<title>docs</title>")),
        Route("/openapi.json", lambda _: JSONResponse({"openapi": "3.1.0", "paths": {}})),
        *(Route(path, _admin, methods=["GET", "POST"]) for path in admin),
    ]


async def _admin(request: Request) -> Response:
    """A route that no client of ours may reach: it answers, so that a test sees when one does."""
    request.app.state.paths.append(request.url.path)
    return JSONResponse({"reached": request.url.path})


async def _models(request: Request) -> Response:
    state = request.app.state
    card = {"id": state.model, "object": "model", "created": 1, "owned_by": "vllm", "root": state.model}
    return JSONResponse(
        {"object": "list", "data": [{**card, "parent": None, "max_model_len": state.max_model_len, "permission": []}]}
    )


async def _tokenize(request: Request) -> Response:
    body, state = await request.json(), request.app.state
    text = render(body["messages"]) if "messages" in body else body["prompt"]
    tokens = state.vocabulary.encode(text)
    shape = {"count": len(tokens), "max_model_len": state.max_model_len, "tokens": tokens, "token_strs": None}
    return JSONResponse(shape)


async def _detokenize(request: Request) -> Response:
    body = await request.json()
    return JSONResponse({"prompt": request.app.state.vocabulary.decode(body["tokens"])})


async def _complete(request: Request) -> Response:
    state, path = request.app.state, request.url.path
    try:
        body = _parse(await request.body())
        state.requests.append(body)
        state.paths.append(path)
        if state.error is not None:
            status, message = state.error
            raise _Refusal(status, message, "InternalServerError" if status >= 500 else "BadRequestError")
        completion = _answer(body, state)
    except _Refusal as refusal:
        return JSONResponse(refusal.body(), status_code=refusal.status)
    options = body.get("stream_options") or {}
    stream = bool(body.get("stream"))
    return _Answer(completion, state, stream=stream, include_usage=bool(options.get("include_usage")))


def _parse(data: bytes) -> Json:
    try:
        body = json.loads(data)
    except ValueError as exc:
        raise _Refusal(400, f"1 validation error:\n  JSON decode error: {exc}", "Bad Request", "body") from exc
    if not isinstance(body, dict):
        raise _Refusal(400, "1 validation error:\n  Input should be a valid dictionary", "Bad Request", "body")
    return body


def _answer(body: Json, state: Any) -> Completion:
    _check(body, state)
    kind: Literal["chat", "completion"] = "chat" if "messages" in body else "completion"
    prompt, question = _prompt(body, kind)
    prompt_tokens, limit = len(state.vocabulary.encode(prompt)), _limit(body)
    if prompt_tokens + (limit or 1) > state.max_model_len:
        raise _Refusal(
            400,
            f"This model's maximum context length is {state.max_model_len} tokens. However, you requested {limit or 1} "
            f"output tokens and your prompt contains {prompt_tokens} input tokens.",
            "BadRequestError",
            "input_tokens",
        )
    tool = _tool(body)
    text = state.answer if state.answer is not None else answer_to(prompt, question=question)
    tokens = state.vocabulary.encode(text)
    cut = limit is not None and len(tokens) > limit
    serial = len(state.requests)
    return Completion(
        kind=kind,
        id=f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{serial:016x}",
        created=int(time.time()),
        model=body.get("model") or state.model,
        n=body.get("n") or 1,
        text=state.vocabulary.decode(tokens[:limit]) if cut else text,
        tool=tool,
        finish_reason="tool_calls" if tool else "length" if cut else "stop",
        prompt_tokens=prompt_tokens,
        completion_tokens=min(len(tokens), limit) if limit is not None else len(tokens),
        details=state.prompt_tokens_details,
    )


def _check(body: Json, state: Any) -> None:
    if "messages" in body and not isinstance(body["messages"], list):
        raise _Refusal(400, "1 validation error:\n  Input should be a valid list", "Bad Request", "body.messages")
    for n, tool in enumerate(body.get("tools") or []):
        if tool.get("type") != "function":
            given = tool.get("type")
            message = f"2 validation errors:\n  Input should be 'function', 'input': '{given}'\n  Field required"
            raise _Refusal(400, message, "Bad Request", f"body.tools.{n}.type")
    if body.get("model") not in (None, "", state.model):
        raise _Refusal(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model")


def _prompt(body: Json, kind: Literal["chat", "completion"]) -> tuple[str, str]:
    """The rendered prompt and the question in it."""
    if kind == "completion":
        given = body.get("prompt")
        text = "\n".join(given) if isinstance(given, list) else str(given)
        return text, text
    messages = body["messages"]
    question = next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), "")
    return render(messages), question


def _limit(body: Json) -> int | None:
    given = body.get("max_completion_tokens") or body.get("max_tokens")
    return int(given) if given is not None else None


def _tool(body: Json) -> str | None:
    """The function to call, when the request forces one."""
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if isinstance(choice, dict):
        return str(choice["function"]["name"])
    return str(tools[0]["function"]["name"]) if tools and choice == "required" else None
