"""What vLLM 0.29 puts on the wire for one completion: a whole answer, or the chunks of a stream."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
FINGERPRINT = "tiny-engine-1"


@dataclass(frozen=True)
class Completion:
    """One answered request, before it takes a wire shape."""

    kind: Literal["chat", "completion"]
    id: str
    created: int
    model: str
    n: int
    text: str
    tool: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    details: Json | None

    def usage(self, *, whole: bool) -> Json:
        """vLLM leaves out null details in a stream and gives them in a whole answer."""
        counts: Json = {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.n * self.completion_tokens,
            "completion_tokens": self.n * self.completion_tokens,
        }
        if whole:
            return {**counts, "prompt_tokens_details": self.details, "completion_tokens_details": None}
        return counts if self.details is None else {**counts, "prompt_tokens_details": self.details}

    def whole(self) -> Json:
        """The answer to a request without `stream`."""
        chat = self.kind == "chat"
        return {
            "id": self.id,
            "object": "chat.completion" if chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._chat_choice(i) if chat else self._text_choice(i) for i in range(self.n)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self.usage(whole=True),
            "kv_transfer_params": None,
        }

    def _chat_choice(self, index: int) -> Json:
        message: Json = {"role": "assistant", "content": None if self.tool else self.text, "refusal": None}
        message |= {"annotations": None, "audio": None, "function_call": None, "reasoning": None}
        if self.tool:
            message["tool_calls"] = [self._tool_call()]
        ends = {"logprobs": None, "finish_reason": self.finish_reason, "stop_reason": None, "token_ids": None}
        return {"index": index, "message": message, **ends}

    def _text_choice(self, index: int) -> Json:
        ends = {"logprobs": None, "finish_reason": self.finish_reason, "stop_reason": None, "token_ids": None}
        return {"index": index, "text": self.text, **ends}

    def _tool_call(self) -> Json:
        call_id = f"call_{self.id[-8:]}"
        return {"id": call_id, "type": "function", "function": {"name": self.tool, "arguments": "{}"}}

    def chunks(self, *, chunk_chars: int, include_usage: bool = False) -> Iterator[tuple[bool, Json]]:
        """The stream's chunks; True marks those that carry content.

        vLLM puts its fingerprint on those that end a choice, but where a frame of usage follows, on that one alone.
        """
        for is_content, chunk in self._unstamped(chunk_chars):
            ends = any(choice["finish_reason"] is not None for choice in chunk["choices"])
            yield is_content, {**chunk, "system_fingerprint": FINGERPRINT} if ends and not include_usage else chunk

    def _unstamped(self, chunk_chars: int) -> Iterator[tuple[bool, Json]]:
        if self.kind == "chat":
            for i in range(self.n):
                yield False, self.chunk(i, {"delta": {"role": "assistant", "content": ""}})
        if self.tool:
            for i in range(self.n):
                yield True, self.chunk(i, {"delta": {"tool_calls": [{"index": 0, **self._tool_call()}]}})
                yield False, self.chunk(i, {"delta": {"content": ""}}, finish_reason=self.finish_reason)
            return
        pieces = [self.text[at : at + chunk_chars] for at in range(0, len(self.text), chunk_chars)] or [""]
        for last, (piece, i) in _mark_last(list(itertools.product(pieces, range(self.n))), tail=self.n):
            content = {"delta": {"content": piece}} if self.kind == "chat" else {"text": piece}
            yield True, self.chunk(i, content, finish_reason=self.finish_reason if last else None)

    def chunk(self, index: int, content: Json, *, finish_reason: str | None = None) -> Json:
        """A chunk. vLLM puts the last word and the finish reason into the same one."""
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
        if finish_reason is not None:
            choice["stop_reason"] = None
        return {**self._head(), "choices": [choice]}

    def usage_chunk(self) -> Json:
        return {**self._head(), "choices": [], "usage": self.usage(whole=False), "system_fingerprint": FINGERPRINT}

    def _head(self) -> Json:
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def _mark_last(items: list[tuple[str, int]], *, tail: int) -> Iterator[tuple[bool, tuple[str, int]]]:
    for n, item in enumerate(items):
        yield n >= len(items) - tail, item
