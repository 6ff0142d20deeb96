"""An answer with what supports it, read from the wire: whole, or put together from a stream's chunks."""

from collections.abc import Mapping
from dataclasses import dataclass

from rag_stack.client.reply import Completion, UsageReply, parse
from rag_stack.errors import EngineError
from rag_stack.protocol import RagBlock, RagCitation, RagSource


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. `cached_tokens`: how many of the prompt's the engine had computed before; None if it does not tell."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    `citations` point at `sources` by number and at `text` by character. `timings_ms` holds the milliseconds of each
    stage of retrieval. `index_versions` names the stores that were searched, none when nothing was; with one,
    `store` and `index_version` say the same, else they are None. `release_version` is None where the server does not
    tell it. `finish_reason` is `stop`, or `length` when the answer was cut off. `cached_tokens` are those of the prompt
    that the engine had computed before, None where it does not tell.
    """

    text: str
    citations: tuple[RagCitation, ...]
    sources: tuple[RagSource, ...]
    timings_ms: Mapping[str, float]
    release: str
    release_version: str | None
    store: str | None
    index_version: str | None
    index_versions: Mapping[str, str]
    model: str
    usage: Usage | None
    finish_reason: str
    cached_tokens: int | None = None


class AnswerBuilder:
    """Puts an answer together from its chunks."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._rag: RagBlock | None = None
        self._usage: UsageReply | None = None
        self._model = ""
        self._finish_reason: str | None = None

    def feed(self, chunk: object) -> str:
        """Take a chunk; returns the text that it adds, often none. Raises EngineError for anything but a chunk."""
        reply = parse(chunk, Completion)
        self._model = reply.model
        self._rag = reply.rag or self._rag
        self._usage = reply.usage or self._usage
        added = ""
        for choice in reply.choices:
            if choice.index == 0:
                added = (choice.delta.content if choice.delta else None) or ""
                self._finish_reason = choice.finish_reason or self._finish_reason
        self._text.append(added)
        return added

    @property
    def sources(self) -> tuple[RagSource, ...]:
        """What went into the prompt, known from the first chunk on."""
        return tuple(self._rag.sources) if self._rag else ()

    def answer(self) -> Answer:
        """The answer, after the last chunk. Raises EngineError when the stream ended before the answer did."""
        if self._finish_reason is None:
            raise EngineError("the stream ended before the answer was complete; ask again")
        return _answer(
            "".join(self._text),
            model=self._model,
            rag=self._rag,
            usage=self._usage,
            finish_reason=self._finish_reason,
        )


def read_answer(reply: object) -> Answer:
    """An answer that came whole. Raises EngineError when it is not one of ours."""
    completion = parse(reply, Completion)
    choice = next((each for each in completion.choices if each.index == 0), None)
    if choice is None or choice.message is None:
        raise EngineError("the server's answer has no message")
    return _answer(
        choice.message.content or "",
        model=completion.model,
        rag=completion.rag,
        usage=completion.usage,
        finish_reason=choice.finish_reason or "stop",
    )


def _answer(text: str, *, model: str, rag: RagBlock | None, usage: UsageReply | None, finish_reason: str) -> Answer:
    if rag is None:
        raise EngineError("the answer has no `rag` block, so this is not a rag_stack server; is base_url right?")
    return Answer(
        text=text,
        citations=tuple(rag.citations),
        sources=tuple(rag.sources),
        timings_ms=rag.timings_ms,
        release=rag.release,
        release_version=rag.release_version,
        store=rag.store,
        index_version=rag.index_version,
        index_versions=_index_versions(rag),
        model=model,
        usage=None if usage is None else _usage(usage),
        finish_reason=finish_reason,
        cached_tokens=_cached_tokens(rag, usage),
    )


def _index_versions(rag: RagBlock) -> Mapping[str, str]:
    if rag.store is None:
        return rag.index_versions or {}
    return {rag.store: rag.index_version or ""}


def _cached_tokens(rag: RagBlock, usage: UsageReply | None) -> int | None:
    if rag.cached_tokens is not None or usage is None or usage.prompt_tokens_details is None:
        return rag.cached_tokens
    return usage.prompt_tokens_details.cached_tokens


def _usage(reply: UsageReply) -> Usage:
    details = reply.prompt_tokens_details
    return Usage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens or 0,
        total_tokens=reply.total_tokens,
        cached_tokens=details.cached_tokens if details else None,
    )
