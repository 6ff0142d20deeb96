"""The nouns of the request path: frozen values that pass between its stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

AttributeValue: TypeAlias = str | float | bool
CitationMethod: TypeAlias = Literal["marker", "overlap"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of a document as it is indexed.

    `text` is verbatim: it equals `document[start:end]`, offsets in characters of the document's text.
    """

    passage_id: str
    document_id: str
    text: str
    title: str
    uri: str
    start: int
    end: int
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its score, 0..1, higher is better, and the store that it was found in, if it was.

    What a score means depends on the ranking, see `rag_stack.retrieval.fusion`.
    """

    passage: Passage
    score: float
    store: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A hit that went into the prompt, under the number by which the model and the reader know it (from 1)."""

    number: int
    hit: Hit


@dataclass(frozen=True, slots=True)
class Citation:
    """A stretch of the answer that one source supports.

    `answer_start`, `answer_end` are character offsets in the answer. `quote` is a verbatim piece of the cited
    document at its characters `quote_start:quote_end`. A marker citation quotes the whole passage, all that the
    model claimed; an overlap citation quotes the span that was verified.
    """

    method: CitationMethod
    source: int
    answer_start: int
    answer_end: int
    quote: str
    quote_start: int
    quote_end: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went before the engine saw it, in milliseconds."""

    queue_ms: float = 0.0
    embed_ms: float = 0.0
    search_ms: float = 0.0
    rerank_ms: float = 0.0
    prompt_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What a search found, best first, and in which index version of each store; "" for a store that holds nothing."""

    hits: tuple[Hit, ...]
    index_versions: Mapping[str, str]
    timings: Timings = Timings()
