"""Chat and text completions with retrieval: read, ground, forward, dress."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api import encoding
from rag_stack.api.admission import Admission
from rag_stack.api.ahead import ahead_of, noting_first_token
from rag_stack.api.answer import AnswerSender, Dressing, Kind
from rag_stack.api.entrance import ask_of, let_in
from rag_stack.api.http import read_json, while_connected
from rag_stack.api.retrieval_request import (
    INCLUDE_MESSAGES,
    INCLUDE_REPLAY,
    INCLUDE_TEXT,
    RequestReader,
    RetrievalRequest,
)
from rag_stack.api.traced_engine import forward_traced
from rag_stack.api.usage import reads_cache, takes_out_usage, with_usage
from rag_stack.errors import EngineError, InvalidRequestError, RagStackError
from rag_stack.protocol import MAX_QUERY_CHARS
from rag_stack.rag.pipeline import Grounding, Pipeline, Question
from rag_stack.rag.prefill import Prefill, Prefiller
from rag_stack.rag.prompt import text_of
from rag_stack.tracing.tracer import UNTRACED, Tracer

# What a search finds, about, where the request does not say.
_PASSAGES: Final = 4
# Of a body: what makes prompts with the same messages begin in different ways, or share nothing though they do not.
_BESIDE: Final = (
    "add_generation_prompt",
    "add_special_tokens",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "prompt_embeds",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "truncate_prompt_tokens",
    "truncation_side",
)


class GroundedEndpoint:
    """POST /v1/chat/completions or /v1/completions."""

    def __init__(
        self,
        engine: ASGIApp,
        *,
        kind: Kind,
        reader: RequestReader,
        pipeline: Pipeline,
        release: str,
        release_version: str = "",
        max_body_bytes: int,
        admission: Admission | None = None,
        prefiller: Prefiller | None = None,
        tracer: Tracer = UNTRACED,
        usage_forced: bool = False,
    ) -> None:
        self._engine = engine
        # The engine ends every stream with its usage, whether the client asks for it or not.
        self._usage_forced = usage_forced
        self._admission = admission
        self._prefiller = prefiller
        self._tracer = tracer
        self._kind: Kind = kind
        self._reader = reader
        self._pipeline = pipeline
        self._release = release
        self._version = release_version
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = await read_json(scope, receive, max_bytes=self._max_body_bytes)
        # A text completion is a raw prompt: it is grounded when it asks to be, not because the release has a default.
        request = self._reader.read(body, default=self._kind == "chat")
        _check_stream(body)
        question = self._question(request)

        async def answer(send: Send, timed: Callable[[Send], Send]) -> None:
            with self._prefill(scope, request) as prefill:
                grounding = await while_connected(self._pipeline.ground(question, prefill=prefill), receive)
            engine_body = with_usage(self._engine_body(request, grounding.messages))
            sender = AnswerSender(send, self._dressing(request, grounding, path=scope["path"], engine_body=engine_body))

            def watched(send: Send) -> Send:
                return timed(noting_first_token(prefill, send))

            await self._forward(scope, receive, sender, watched, body=engine_body)

        ask = ask_of(scope, body, passages=(request.top_k or _PASSAGES) if question.query else 0)
        streams = body.get("stream") is True
        await let_in(self._admission, ask, scope, receive, send, streams=streams, answer=answer, tracer=self._tracer)

    def _prefill(self, scope: Scope, request: RetrievalRequest) -> AbstractContextManager[Prefill | None]:
        if self._prefiller is None or not request.stores:
            return nullcontext()
        return self._prefiller.prefill(ahead_of(self._engine, scope), partial(self._engine_body, request))

    async def _forward(
        self,
        scope: Scope,
        receive: Receive,
        sender: AnswerSender,
        timed: Callable[[Send], Send],
        *,
        body: dict[str, Any],
    ) -> None:
        try:
            await forward_traced(self._tracer, self._engine, scope, receive, timed(sender), body=body)
        except Exception as exc:
            if not sender.streaming:
                raise
            error = exc if isinstance(exc, EngineError) else EngineError("the engine failed in the middle of an answer")
            await sender.fail(error)
            if not isinstance(exc, RagStackError):
                raise

    def _dressing(
        self, request: RetrievalRequest, grounding: Grounding, *, path: str, engine_body: Mapping[str, Any]
    ) -> Dressing:
        replay = None
        if INCLUDE_REPLAY in request.include:
            replay = encoding.replay_record(
                grounding, release=self._release, release_version=self._version, path=path, request=engine_body
            )
        return Dressing(
            kind=self._kind,
            release=self._release,
            release_version=self._version,
            replay=replay,
            grounding=grounding,
            cite=lambda text: self._pipeline.cite(text, grounding),
            with_text=INCLUDE_TEXT in request.include,
            with_messages=INCLUDE_MESSAGES in request.include,
            tell=lambda served: self._pipeline.served(grounding, served, reads_cache=reads_cache(engine_body)),
            takes_out_usage=takes_out_usage(request.engine_body) and not self._usage_forced,
        )

    def _question(self, request: RetrievalRequest) -> Question:
        body = request.engine_body
        retrieves = bool(request.stores or request.hits)
        messages = _messages(body) if self._kind == "chat" else _prompt(body, retrieves=retrieves)
        return Question(
            messages=messages,
            query=_query(messages) if retrieves else "",
            stores=request.stores,
            hits=request.hits,
            top_k=request.top_k,
            filters=request.filters,
            ranking=request.ranking,
            max_tokens=_max_tokens(body),
            tools=json.dumps(body["tools"], ensure_ascii=False) if body.get("tools") else "",
            beside=json.dumps([self._kind, *(body.get(key) for key in _BESIDE)]),
            is_private=body.get("cache_salt") is not None,
        )

    def _engine_body(self, request: RetrievalRequest, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self._kind == "chat":
            return {**request.engine_body, "messages": list(messages)}
        if not request.stores and not request.hits:
            return request.engine_body
        return {**request.engine_body, "prompt": "\n\n".join(text_of(message) for message in messages)}


def _messages(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise InvalidRequestError("`messages` must be a list of at least one message", param="messages")
    for n, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or not all(isinstance(part, dict) for part in parts):
            raise InvalidRequestError(f"messages[{n}]: `content` must be a string or a list of parts", param="messages")
    return tuple(messages)


def _check_stream(body: Mapping[str, Any]) -> None:
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidRequestError(f"`stream` must be true or false, got {body['stream']!r:.50}", param="stream")


def _prompt(body: Mapping[str, Any], *, retrieves: bool) -> tuple[Mapping[str, Any], ...]:
    """A completion's prompt as a message to ground; left alone when nothing is retrieved for it."""
    if not retrieves:
        return ()
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InvalidRequestError("with retrieval, `prompt` must be one string", param="prompt")
    return ({"role": "user", "content": prompt},)


def _query(messages: tuple[Mapping[str, Any], ...]) -> str:
    """The last user message is what is searched for."""
    text = next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), "").strip()
    if not text:
        raise InvalidRequestError("there is no question: no user message has text", param="messages")
    if len(text) > MAX_QUERY_CHARS:
        raise InvalidRequestError(
            f"the question has {len(text)} characters; at most {MAX_QUERY_CHARS} can be searched for", param="messages"
        )
    return text


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    """`max_completion_tokens` or `max_tokens`; what is not a positive number is left for the engine to refuse."""
    given = body.get("max_completion_tokens") or body.get("max_tokens")
    return given if isinstance(given, int) and given > 0 else None
