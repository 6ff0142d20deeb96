"""The prompt: `system | documents | question`, with passages as data and in an order that the engine's cache likes.

How relevant they are the model reads behind them: inside of them it would make the same passage another text.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rag_stack.errors import ContextLengthError
from rag_stack.rag.ordering import FixedOrder, Ordering, Plan, Surroundings
from rag_stack.rag.token_spare import TokenSpare
from rag_stack.types import Hit, Source

Message = Mapping[str, Any]

# A passage is data: it may neither open nor close the element that holds it. Some tokenizers fold what looks like `<`.
_OPENING = re.compile("[<\uff1c\ufe64]")
_TAG_NAME = re.compile(r"[\s/]*documents?\b")
_TAG_CHARS = 64
# What a chat template may add around messages, in tokens, on top of their text; checked exactly when it matters.
_TEMPLATE_TOKENS_PER_MESSAGE = 16
_TEMPLATE_TOKENS = 64
# Of a prompt: up to so many bytes are put together at once, and what surrounds a document and a message in them.
_QUICK_BYTES = 32_768
_DOCUMENT_BYTES = 64
_BYTES_PER_MESSAGE = 64
# What a document may take more between others than alone: a longer number, and one token that ends at its border. It
# begins and ends with a line, where tokenizers cut.
_TOKENS_PER_BORDER = 4
_AS_GIVEN = FixedOrder("rank")
_NO_PLAN = Plan((), Surroundings(0))


class Tokenizer(Protocol):
    """The generator's tokenizer."""

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the messages under the model's chat template."""
        ...

    def count_text(self, text: str) -> int:
        """Tokens of a text by itself, and no fewer than it takes within another one."""
        ...


@dataclass(frozen=True, slots=True)
class GroundedPrompt:
    """Messages for the engine and the sources they hold; hits that did not fit are left out, lowest score first.

    `plan` is the order of the sources, to be told to the builder again when the engine has answered.
    """

    messages: tuple[Message, ...]
    sources: tuple[Source, ...]
    plan: Plan


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Puts passages in front of the last question and keeps all of it within the model's context."""

    system: str
    context_tokens: int
    reserve_tokens: int
    tokenizer: Tokenizer
    # What ends a message or opens another one for this model; a passage may hold none of it.
    special_tokens: tuple[str, ...] = ()
    ordering: Ordering = _AS_GIVEN
    _spare: TokenSpare = field(default_factory=TokenSpare, repr=False, compare=False)

    def build(
        self,
        messages: Sequence[Message],
        hits: Sequence[Hit],
        *,
        max_tokens: int | None,
        tools: str = "",
        beside: str = "",
        as_given: bool = False,
        is_private: bool = False,
        is_provisional: bool = False,
    ) -> GroundedPrompt:
        """Ground `messages` in `hits` (best first), leaving `max_tokens` for the answer. Blocking: it may tokenize.

        `tools` is the JSON that the chat template puts into the prompt beside the messages; `beside` whatever else
        keeps prompts with the same messages from sharing a prefix. `as_given`: the hits keep their order.
        `is_private`: see Surroundings. `is_provisional`: it may never reach the engine, so the order learns nothing.
        Raises ContextLengthError when messages and tools alone do not fit.
        """
        ordering = _AS_GIVEN if as_given else self.ordering

        def ground(kept: Sequence[Hit]) -> GroundedPrompt:
            return self._ground(messages, kept, ordering, beside=tools + beside, is_private=is_private)

        prompt = self._fitting(ground, hits, max_tokens=max_tokens, tools=tools)
        if not is_provisional:
            ordering.commit(prompt.plan)
        return prompt

    def is_quick(
        self, messages: Sequence[Message], hits: Sequence[Hit], *, max_tokens: int | None, tools: str = ""
    ) -> bool:
        """Whether `build` takes microseconds, as what is short and surely fits does: then no thread is worth its hop.

        Told by sizes, and by what is known of the passages' tokens. What those do not see, a tag to escape or a tool
        call, costs a tokenizer's time at worst.
        """
        size = sum(_bytes(text_of(message)) for message in messages)
        size += 6 * _bytes(tools) + _bytes(self.system)
        for hit in hits:
            passage = hit.passage
            size += _bytes(passage.title) + _bytes(passage.text) + _DOCUMENT_BYTES
        bound = size + _TEMPLATE_TOKENS + _BYTES_PER_MESSAGE * (len(messages) + 1)
        budget = self.context_tokens - (max_tokens or self.reserve_tokens)
        if bound > _QUICK_BYTES:
            return False
        if bound <= budget:
            return True
        return bound - self._spare.known(hits) + _TOKENS_PER_BORDER * len(hits) <= budget

    def _fitting(
        self,
        ground: Callable[[Sequence[Hit]], GroundedPrompt],
        hits: Sequence[Hit],
        *,
        max_tokens: int | None,
        tools: str,
    ) -> GroundedPrompt:
        budget = self.context_tokens - (max_tokens or self.reserve_tokens)
        prompt = ground(hits)
        if self._tokens(prompt, tools, budget) <= budget:
            return prompt
        prompt = ground(())
        tokens = self._tokens(prompt, tools, budget)
        if tokens > budget:
            raise ContextLengthError(
                f"This model's context is {self.context_tokens} tokens; the messages take {tokens} and "
                f"{self.context_tokens - budget} are kept for the answer. Shorten the messages or lower max_tokens.",
                param="messages",
            )
        # Halved, not counted down: every try tokenizes the whole prompt.
        fits, too_many = 0, len(hits)
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            tried = ground(hits[:middle])
            if self._tokens(tried, tools, budget) <= budget:
                fits, prompt = middle, tried
            else:
                too_many = middle
        return prompt

    def _ground(
        self,
        messages: Sequence[Message],
        hits: Sequence[Hit],
        ordering: Ordering,
        *,
        beside: str,
        is_private: bool,
    ) -> GroundedPrompt:
        grounded = self._with_system(messages)
        if not hits:
            return GroundedPrompt(messages=tuple(grounded), sources=(), plan=_NO_PLAN)
        last = _last_user(grounded)
        plan = ordering.plan(hits, _surroundings(grounded, last, beside=beside, is_private=is_private))
        sources = tuple(Source(number=n, hit=hit) for n, hit in enumerate(plan.hits, start=1))
        documents = render_documents(sources, special_tokens=self.special_tokens)
        grounded[last] = _prepend(grounded[last], f"{documents}\n{_ranks(hits, sources)}\n")
        return GroundedPrompt(messages=tuple(grounded), sources=sources, plan=plan)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The release's instructions first, then the caller's own, in one system message."""
        first, rest = messages[0], messages[1:]
        if first.get("role") in ("system", "developer"):
            return [_prepend({**first, "role": "system"}, self.system + "\n\n"), *rest]
        return [{"role": "system", "content": self.system}, *messages]

    def _tokens(self, prompt: GroundedPrompt, tools: str, budget: int) -> int:
        """Tokens of a prompt and tools; an upper bound where that already fits, since counting costs milliseconds.

        A byte-level tokenizer never makes more tokens than there are UTF-8 bytes. All of a message counts, not its
        text alone: templates render tool calls too. Of passages it is remembered how many tokens they take.
        """
        messages = prompt.messages
        # What is not content may be rendered as JSON, and JSON may escape: twelve bytes for one character.
        rest = [{key: value for key, value in message.items() if key != "content"} for message in messages]
        size = (
            sum(len(text_of(message).encode()) for message in messages)
            + len(json.dumps(rest))
            + 6 * len(tools.encode())
        )
        bound = size + _TEMPLATE_TOKENS + _TEMPLATE_TOKENS_PER_MESSAGE * len(messages)
        if bound > budget and (sources := prompt.sources):
            bound += _TOKENS_PER_BORDER * len(sources)
            bound -= self._spare.counted(
                [source.hit for source in sources],
                [f"{_block(source, self.special_tokens)}\n" for source in sources],
                enough=bound - budget,
                count=self.tokenizer.count_text,
            )
        return bound if bound <= budget else self.tokenizer.count(_as_text(messages, tools))


def _as_text(messages: Sequence[Message], tools: str) -> list[Message]:
    """The messages as every chat template takes them: parts joined, and the tools at the end of the first message."""
    flat = [{**m, "content": text_of(m)} if isinstance(m.get("content"), list) else m for m in messages]
    return [{**flat[0], "content": f"{text_of(flat[0])}\n{tools}"}, *flat[1:]] if tools else flat


def _surroundings(messages: Sequence[Message], last: int, *, beside: str, is_private: bool) -> Surroundings:
    """What stands before and behind the documents, which go in front of the message number `last`."""
    before, after = messages[:last], messages[last:]
    # A conversation's own turns are in it: all of a message, since templates render tool calls too.
    turns = "" if last == 1 else json.dumps(before, ensure_ascii=False)
    return Surroundings(
        key=hash((text_of(before[0]), turns, beside)),
        before_chars=sum(len(text_of(message)) for message in before),
        after_chars=sum(len(text_of(message)) for message in after),
        is_conversation=last > 1,
        is_private=is_private,
    )


def _ranks(hits: Sequence[Hit], sources: Sequence[Source]) -> str:
    """A line that names the documents by relevance, best first; nothing where they stand so already."""
    number = {id(source.hit): source.number for source in sources}
    ranked = [number[id(hit)] for hit in hits]
    return "" if ranked == sorted(ranked) else f"Most relevant first: {', '.join(map(str, ranked))}.\n"


def render_documents(sources: Sequence[Source], *, special_tokens: Sequence[str] = ()) -> str:
    """The passages as delimited data, each under its number."""
    return "\n".join(["<documents>", *[_block(source, special_tokens) for source in sources], "</documents>"])


def _block(source: Source, special_tokens: Sequence[str]) -> str:
    passage = source.hit.passage
    return (
        f'<document number="{source.number}" title="{_attribute(passage.title, special_tokens)}">\n'
        f"{_data(passage.text, special_tokens)}\n</document>"
    )


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


def _bytes(text: str) -> int:
    """Bytes in UTF-8; of a text beyond a quick prompt, as many as tell that."""
    return len(text) if len(text) > _QUICK_BYTES or text.isascii() else len(text.encode())


def _data(text: str, special_tokens: Sequence[str]) -> str:
    for token in special_tokens:
        text = text.replace(token, ("&lt;" if token[0] == "<" else f"&#{ord(token[0])};") + token[1:])
    return _OPENING.sub(lambda found: "&lt;" if _opens_tag(text, found.end()) else found.group(), text)


def _opens_tag(text: str, after: int) -> bool:
    """Whether what follows a `<` reads as our delimiter, however it is spelled."""
    folded = unicodedata.normalize("NFKC", text[after : after + _TAG_CHARS]).casefold()
    visible = "".join(c for c in folded if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    return _TAG_NAME.match(visible) is not None


def _attribute(text: str, special_tokens: Sequence[str]) -> str:
    return _data(" ".join(text.split()), special_tokens).replace('"', "'")


def _last_user(messages: Sequence[Message]) -> int:
    return max(n for n, message in enumerate(messages) if message.get("role") == "user")


def _prepend(message: Message, text: str) -> Message:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": text}, *content]}
    return {**message, "content": text + (content or "")}
