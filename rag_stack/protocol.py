"""Wire models shared by the API layer and the SDK. What OpenAI's API defines keeps OpenAI's names and shapes."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

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


class HybridSearch(Wire):
    """How much nearness (`embedding_weight`) and words (`text_weight`) count, against each other."""

    embedding_weight: float = Field(ge=0.0, le=1e6)
    text_weight: float = Field(ge=0.0, le=1e6)

    @model_validator(mode="after")
    def _one_counts(self) -> Self:
        if self.embedding_weight + self.text_weight <= 0:
            raise ValueError("embedding_weight and text_weight must not both be 0")
        return self


class RankingOptions(Wire):
    """How hits are ranked, and cuts off those that score less.

    `ranker`: `auto` and `default-2024-11-15` are the release's own ranking, `none` the same without its reranker, and
    `hybrid`, `dense` and `lexical` find by vectors and words, by vectors, or by words alone, without a reranker.
    """

    ranker: Literal["auto", "none", "default-2024-11-15", "hybrid", "dense", "lexical"] | None = None
    score_threshold: float | None = Field(None, ge=0.0, le=1.0)
    hybrid_search: HybridSearch | None = None


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


class StaticChunking(Wire):
    """How files are cut, in tokens of the embedder."""

    max_chunk_size_tokens: int = Field(ge=1, le=4096)
    chunk_overlap_tokens: int = Field(ge=0, le=2048)


class ChunkingStrategy(Wire):
    """`auto`, the server's own, or `static`."""

    type: Literal["auto", "static"] = "auto"
    static: StaticChunking | None = None


# OpenAI's limits.
AttributeKey: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeText: TypeAlias = Annotated[str, StringConstraints(max_length=512)]
Attributes: TypeAlias = Annotated[dict[AttributeKey, AttributeText | float | bool], Field(max_length=16)]
Metadata: TypeAlias = Annotated[dict[AttributeKey, AttributeText], Field(max_length=16)]
MAX_BATCH_FILES = 2_000


class VectorStoreCreate(Wire):
    """POST /v1/vector_stores."""

    name: str = Field("", max_length=256)
    description: str = Field("", max_length=4096)
    metadata: Metadata = Field(default_factory=dict)
    file_ids: list[str] = Field(default_factory=list, max_length=MAX_BATCH_FILES)
    chunking_strategy: ChunkingStrategy = ChunkingStrategy()


class VectorStoreUpdate(Wire):
    """POST /v1/vector_stores/{id}: what is left out stays."""

    name: str | None = Field(None, max_length=256)
    description: str | None = Field(None, max_length=4096)
    metadata: Metadata | None = None


class VectorStoreFileCreate(Wire):
    """POST /v1/vector_stores/{id}/files, and one of the `files` of a batch."""

    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class VectorStoreFileUpdate(Wire):
    """POST /v1/vector_stores/{id}/files/{file_id}."""

    attributes: Attributes = Field(default_factory=dict)


class FileBatchCreate(Wire):
    """POST /v1/vector_stores/{id}/file_batches: `file_ids`, or `files` that bring their own settings."""

    file_ids: list[str] | None = Field(None, min_length=1, max_length=MAX_BATCH_FILES)
    files: list[VectorStoreFileCreate] | None = Field(None, min_length=1, max_length=MAX_BATCH_FILES)
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class LastError(Wire):
    """Why a file could not be indexed."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class VectorStoreFile(Wire):
    """A file of a store as OpenAI's API gives it."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    last_error: LastError | None = None
    usage_bytes: int = 0
    attributes: dict[str, Scalar] = Field(default_factory=dict)
    chunking_strategy: ChunkingStrategy


class VectorStoreFileBatch(Wire):
    """Files that were attached together."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class FileObject(Wire):
    """An uploaded file as OpenAI's API gives it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"


class RagSource(Wire):
    """A passage that went into the prompt, under the number the model saw; `store` is where it was found."""

    number: int
    store: str | None = None
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


class ReplayPassage(Wire):
    """A passage that went into the prompt, by the SHA-256 of its text."""

    number: int
    passage_id: str
    file_id: str
    sha256: str


class ReplayRecord(Wire):
    """What it takes to ask the engine the same again, without retrieval: `request` is what it got, seed and all.

    With temperature 0 the same release answers it the same, as far as its engine does (vLLM: with the same batch).
    """

    release: str
    release_version: str | None = None
    path: str
    store: str | None = None
    index_version: str | None = None
    index_versions: dict[str, str] | None = None
    passages: list[ReplayPassage]
    request: dict[str, Any]


class RagBlock(Wire):
    """`rag` on every answer: which release and index version gave it, from which sources, and how long that took.

    Where several stores were searched, `index_versions` (by store) stands for `store` and `index_version`.
    """

    release: str
    release_version: str | None = None
    store: str | None = None
    index_version: str | None = None
    index_versions: dict[str, str] | None = None
    timings_ms: dict[str, float] = Field(default_factory=dict)
    sources: list[RagSource] = Field(default_factory=list)
    citations: list[RagCitation] = Field(default_factory=list)
    cached_tokens: int | None = None
    messages: list[dict[str, Any]] | None = None
    replay: ReplayRecord | None = None
