"""The files of an index version and what its manifest says about them.

index.faiss      the vectors; row i belongs to passage i
passages.arrow   one row a passage (Arrow IPC, uncompressed, so that it can be memory-mapped)
documents.arrow  one row a document, with the digest of its content
lexical/         the passages' words, weighed, as bm25s keeps them (not in format 2, nor with `lexical: null`)

Nothing in the files or the metadata depends on when or where they were built, or on what was promoted then: the same
documents, embedder and settings give the same version. So the metadata holds the gates that judge the content alone.
How a version compares with the one before it belongs to its promotion, and that is in the catalog.
"""

from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_stack.artifacts.manifest import Manifest
from rag_stack.config import describe
from rag_stack.errors import IndexVersionError
from rag_stack.types import AttributeValue

FORMAT_VERSION: Final = 3
# What this release still opens: 2 has no lexical index, and is searched by vectors alone.
READABLE_VERSIONS: Final = (2, FORMAT_VERSION)
INDEX_FILE: Final = "index.faiss"
PASSAGES_FILE: Final = "passages.arrow"
DOCUMENTS_FILE: Final = "documents.arrow"
LEXICAL_DIRECTORY: Final = "lexical"
LEXICAL_DATA_FILE: Final = f"{LEXICAL_DIRECTORY}/data.csc.index.npy"
LEXICAL_INDICES_FILE: Final = f"{LEXICAL_DIRECTORY}/indices.csc.index.npy"
LEXICAL_INDPTR_FILE: Final = f"{LEXICAL_DIRECTORY}/indptr.csc.index.npy"
LEXICAL_VOCABULARY_FILE: Final = f"{LEXICAL_DIRECTORY}/vocab.index.json"
LEXICAL_PARAMS_FILE: Final = f"{LEXICAL_DIRECTORY}/params.index.json"
LEXICAL_TOKENS_FILE: Final = f"{LEXICAL_DIRECTORY}/tokens.arrow"
# What a search reads of it; the vocabulary is there twice, once for bm25s.
LEXICAL_MAPPED_FILES: Final = (LEXICAL_DATA_FILE, LEXICAL_INDICES_FILE, LEXICAL_INDPTR_FILE, LEXICAL_TOKENS_FILE)
LEXICAL_FILES: Final = (*LEXICAL_MAPPED_FILES, LEXICAL_VOCABULARY_FILE, LEXICAL_PARAMS_FILE)
# Everybody who looks at an index reads its manifest: a source that is all wrong must not make it large.
MAX_SKIPPED: Final = 1000

PASSAGES_SCHEMA: Final = pa.schema(
    [
        ("passage_id", pa.string()),
        ("document_id", pa.string()),
        # 64-bit offsets: the texts of a large store pass 2 GB.
        ("text", pa.large_string()),
        ("title", pa.string()),
        ("uri", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
    ]
)
DOCUMENTS_SCHEMA: Final = pa.schema(
    [
        ("document_id", pa.string()),
        ("filename", pa.string()),
        ("title", pa.string()),
        ("uri", pa.string()),
        ("digest", pa.string()),
        ("characters", pa.int64()),
        ("first_row", pa.int64()),
        ("passages", pa.int64()),
    ]
)

_ATTRIBUTE = "attribute"
_ARROW_TYPES: Final = {"string": pa.string(), "number": pa.float64(), "boolean": pa.bool_()}


def type_name(value: AttributeValue) -> str:
    """`string`, `number` or `boolean`."""
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def attribute_column(key: str, type_: str) -> str:
    """The column that holds an attribute's values of one type; null where a passage has none of that type.

    Documents may give the same key values of different types, so there is a column for each.
    """
    return f"{_ATTRIBUTE}:{type_}:{key}"


def attribute_field(key: str, type_: str) -> pa.Field:
    """The Arrow field of such a column."""
    return pa.field(attribute_column(key, type_), _ARROW_TYPES[type_])


def attribute_key(column: str) -> str | None:
    """The key of an attribute column; None for any other column."""
    parts = column.split(":", 2)
    return parts[2] if len(parts) == 3 and parts[0] == _ATTRIBUTE else None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EmbedderRef(_Frozen):
    """The embedder that made the vectors, by its artifact's name and digest."""

    name: str
    digest: str


class Chunking(_Frozen):
    """How documents are cut, in tokens of the embedder."""

    max_tokens: int = Field(200, ge=16)
    overlap_tokens: int = Field(30, ge=0)


StopWords: TypeAlias = Literal[
    "english",
    "english_plus",
    "german",
    "dutch",
    "french",
    "spanish",
    "portuguese",
    "italian",
    "russian",
    "swedish",
    "norwegian",
    "chinese",
    "turkish",
    "korean",
    "danish",
]
Stemmer: TypeAlias = Literal[
    "arabic",
    "armenian",
    "basque",
    "catalan",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hindi",
    "hungarian",
    "indonesian",
    "irish",
    "italian",
    "lithuanian",
    "nepali",
    "norwegian",
    "porter",
    "portuguese",
    "romanian",
    "russian",
    "serbian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
    "yiddish",
]


class Lexical(_Frozen):
    """How texts become words, and how BM25 weighs them: `k1` how much repetition counts, `b` how much length does.

    Stop words are bm25s' lists and stemmers Snowball's, by language; null leaves a step out. A word has two characters
    at least.
    """

    lower_case: bool = True
    stop_words: StopWords | None = "english"
    stemmer: Stemmer | None = "english"
    k1: float = Field(1.5, ge=0.0, le=10.0)
    b: float = Field(0.75, ge=0.0, le=1.0)


class Skipped(_Frozen):
    """A document that is not in the index, and why."""

    document: str
    reason: str


class GateResult(_Frozen):
    """What a gate said of a version. `against` is the version that it was compared with, None for its content alone."""

    name: str
    passed: bool
    detail: str
    against: str | None = None


class IndexMetadata(_Frozen):
    """The metadata of an index version's manifest.

    `recall` (0..1) is the share of the `recall_at` nearest passages that a search finds, over `recall_queries` queries;
    `recall_target` is what the search parameters were tuned for, None where they were given. `training_sample` is the
    number of vectors that FAISS was trained on, 0 for a recipe that learns nothing. `skipped` names the first of the
    documents that were left out, of which there are `skipped_documents`. Without `lexical` it is searched by vectors
    alone.
    """

    format_version: int = FORMAT_VERSION
    embedder: EmbedderRef
    dimension: Annotated[int, Field(ge=1)]
    metric: str = "cosine"
    recipe: str
    search_parameters: str = ""
    passages: Annotated[int, Field(ge=0)]
    documents: Annotated[int, Field(ge=0)]
    chunking: Chunking | None = None
    lexical: Lexical | None = None
    skipped: Annotated[tuple[Skipped, ...], Field(max_length=MAX_SKIPPED)] = ()
    skipped_documents: Annotated[int, Field(ge=0)] = 0
    recall: Annotated[float, Field(ge=0, le=1)]
    recall_at: Annotated[int, Field(ge=1)]
    recall_queries: Annotated[int, Field(ge=1)]
    recall_target: Annotated[float, Field(ge=0, le=1)] | None = None
    training_sample: Annotated[int, Field(ge=0)] = 0
    gates: tuple[GateResult, ...] = ()

    def with_gates(self, results: tuple[GateResult, ...]) -> Self:
        """With the results that judge the content alone; what depends on another version is left to the promotion."""
        return self.model_copy(update={"gates": tuple(each for each in results if each.against is None)})

    def to_json(self) -> dict[str, Any]:
        """What goes into the manifest."""
        return self.model_dump(mode="json")

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The metadata of a published index version. Raises IndexVersionError."""
        version = manifest.metadata.get("format_version")
        if version not in READABLE_VERSIONS:
            raise IndexVersionError(
                f"{str(manifest.ref)!r} has index format {version!r}, this release reads "
                f"{' and '.join(map(str, READABLE_VERSIONS))}; "
                "build it again with `rag-stack index build`"
            )
        try:
            return cls.model_validate(dict(manifest.metadata))
        except ValidationError as exc:
            raise IndexVersionError(
                f"the manifest of {str(manifest.ref)!r} is not an index's: {describe(exc)}"
            ) from exc
