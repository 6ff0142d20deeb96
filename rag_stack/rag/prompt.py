"""The prompt: `system | documents | question`, with passages as data and in an order that does not depend on scores."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rag_stack.errors import ContextLengthError
from rag_stack.types import Hit, Source

Message = Mapping[str, Any]

# A passage is data: it may neither open nor close the element that holds it.
_TAG = re.compile(r"<(?=/?\s*documents?\b)", re.IGNORECASE)
# What a chat template may add around messages, in tokens, on top of their text; checked exactly when it matters.
_TEMPLATE_TOKENS_PER_MESSAGE = 16
_TEMPLATE_TOKENS = 64


class Tokenizer(Protocol):
    """The generator's tokenizer."""

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the messages under the model's chat template."""
        ...


@dataclass(frozen=True, slots=True)
class GroundedPrompt:
    """Messages for the engine and the sources they hold; hits that did not fit are left out, lowest score first."""

    messages: tuple[Message, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Puts passages in front of the last question and keeps all of it within the model's context."""

    system: str
    context_tokens: int
    reserve_tokens: int
    tokenizer: Tokenizer

    def build(self, messages: Sequence[Message], hits: Sequence[Hit], *, max_tokens: int | None) -> GroundedPrompt:
        """Ground `messages` in `hits` (best first), leaving `max_tokens` for the answer.

        Raises ContextLengthError when the messages alone do not fit.
        """
        budget = self.context_tokens - (max_tokens or self.reserve_tokens)
        best = list(hits)
        while True:
            prompt = self._ground(messages, best)
            tokens = self._tokens(prompt.messages, budget)
            if tokens <= budget:
                return prompt
            if not best:
                raise ContextLengthError(
                    f"This model's context is {self.context_tokens} tokens; the messages take {tokens} and "
                    f"{self.context_tokens - budget} are kept for the answer. Shorten the messages or lower max_tokens.",
                    param="messages",
                )
            best.pop()

    def _ground(self, messages: Sequence[Message], hits: Sequence[Hit]) -> GroundedPrompt:
        # Canonical order, not score order: questions that share documents then share a prefix in the engine's cache.
        ordered = sorted(hits, key=lambda hit: (hit.passage.document_id, hit.passage.start))
        sources = tuple(Source(number=n, hit=hit) for n, hit in enumerate(ordered, start=1))
        grounded = self._with_system(messages)
        if sources:
            last = _last_user(grounded)
            grounded[last] = _prepend(grounded[last], render_documents(sources) + "\n\n")
        return GroundedPrompt(messages=tuple(grounded), sources=sources)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The release's instructions first, then the caller's own, in one system message."""
        first, rest = messages[0], messages[1:]
        if first.get("role") in ("system", "developer"):
            return [_prepend({**first, "role": "system"}, self.system + "\n\n"), *rest]
        return [{"role": "system", "content": self.system}, *messages]

    def _tokens(self, messages: Sequence[Message], budget: int) -> int:
        """Tokens of the messages; an upper bound where that already fits, since counting costs milliseconds.

        A byte-level tokenizer never makes more tokens than there are UTF-8 bytes.
        """
        size = sum(len(text_of(message).encode()) for message in messages)
        bound = size + _TEMPLATE_TOKENS + _TEMPLATE_TOKENS_PER_MESSAGE * len(messages)
        return bound if bound <= budget else self.tokenizer.count(messages)


def render_documents(sources: Sequence[Source]) -> str:
    """The passages as delimited data, each under its number."""
    blocks = [
        f'<document number="{source.number}" title="{_attribute(source.hit.passage.title)}">\n'
        f"{_data(source.hit.passage.text)}\n</document>"
        for source in sources
    ]
    return "\n".join(["<documents>", *blocks, "</documents>"])


def text_of(message: Message) -> str:
    """The text of a message whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        )
    return ""


def _data(text: str) -> str:
    return _TAG.sub("&lt;", text)


def _attribute(text: str) -> str:
    return _data(" ".join(text.split())).replace('"', "'")


def _last_user(messages: Sequence[Message]) -> int:
    return max(n for n, message in enumerate(messages) if message.get("role") == "user")


def _prepend(message: Message, text: str) -> Message:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": text}, *content]}
    return {**message, "content": text + (content or "")}
