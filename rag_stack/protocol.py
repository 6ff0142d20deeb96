"""Wire models shared by the API layer and the SDK. What OpenAI's API defines keeps OpenAI's names and shapes."""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

MAX_QUERY_CHARS = 32_768


class Wire(BaseModel):
    """A body whose unknown fields are ignored: clients send fields that servers do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Scalar: TypeAlias = str | float | bool


class ComparisonFilter(Wire):
    """`attributes[key] <type> value`; `in` and `nin` take a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: str = Field(min_length=1, max_length=64)
    value: Scalar | list[Scalar]


class CompoundFilter(Wire):
    """All (`and`) or any (`or`) of the filters inside."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["and", "or"]
    filters: list["ComparisonFilter | CompoundFilter"] = Field(min_length=1, max_length=64)


Filter: TypeAlias = ComparisonFilter | CompoundFilter


class RankingOptions(Wire):
    """Cuts off hits that score less."""

    ranker: str | None = None
    score_threshold: float = Field(0.0, ge=0.0, le=1.0)


class SearchRequest(Wire):
    """POST /v1/vector_stores/{id}/search."""

    query: str | list[str]
    filters: Filter | None = None
    max_num_results: int = Field(10, ge=1, le=50)
    ranking_options: RankingOptions = RankingOptions()
    rewrite_query: bool = False


class TextContent(Wire):
    """A piece of text."""

    type: Literal["text"] = "text"
    text: str


class SearchResult(Wire):
    """A hit as OpenAI's API gives it, with the passage's place in its document as extra keys."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, Scalar]
    content: list[TextContent]
    passage_id: str
    title: str
    url: str
    start: int
    end: int


class SearchPage(Wire):
    """The answer to a search, with the index version that gave it."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchResult]
    has_more: bool = False
    next_page: str | None = None
    index_version: str
    timings_ms: dict[str, float]


class FileCounts(Wire):
    """How many files a store holds, by state."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int = 0


class VectorStore(Wire):
    """A store as OpenAI's API gives it."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    description: str = ""
    usage_bytes: int = 0
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"] = "completed"
    last_active_at: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    index_version: str | None = None


class RagSource(Wire):
    """A passage that went into the prompt, under the number the model saw."""

    number: int
    file_id: str
    filename: str
    passage_id: str
    title: str
    url: str
    score: float
    start: int
    end: int
    text: str | None = None


class RagCitation(Wire):
    """A stretch of the answer (`start_index:end_index`, characters) and the verbatim quote that supports it."""

    method: Literal["marker", "overlap"]
    source: int
    start_index: int
    end_index: int
    quote: str
    quote_start: int
    quote_end: int


class RagBlock(Wire):
    """`rag` on every answer: which release and index version gave it, from which sources, and how long that took."""

    release: str
    store: str | None = None
    index_version: str | None = None
    timings_ms: dict[str, float] = Field(default_factory=dict)
    sources: list[RagSource] = Field(default_factory=list)
    citations: list[RagCitation] = Field(default_factory=list)
    messages: list[dict[str, Any]] | None = None
