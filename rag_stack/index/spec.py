"""The index spec: a YAML file that says what is indexed, how, and what must hold before it is served.

Fields and validation; it does nothing.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from rag_stack.config import ArtifactChoice, Name, read_yaml
from rag_stack.index.format import Chunking, Lexical
from rag_stack.index.pattern import Pattern

SourceFormat: TypeAlias = Literal["auto", "text", "markdown", "html", "pdf", "jsonl", "parquet"]
Scalar: TypeAlias = str | float | bool
NonEmpty: TypeAlias = Annotated[str, StringConstraints(min_length=1)]

AUTO: Final = "auto"
MAX_DOCUMENT_BYTES: Final = 32 << 20
_SUFFIXES: Final = ("txt", "md", "markdown", "html", "htm", "pdf", "jsonl", "parquet")
_S3: Final = re.compile(r"s3://[^/]+(/[^/]+)*/?")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """Where documents lie: a folder, or `s3://bucket/prefix` with the usual AWS environment.

    A relative folder is relative to the spec file's own folder, whatever the current directory is. Patterns mean the
    same for both: `*` and `?` stay within a name, `**` stands for any number of folders, and upper and lower case
    differ. A link to a file is followed, one to a folder is not. `auto` goes by the file's suffix: .md and .markdown
    are Markdown, .html, .htm and .xhtml HTML, .pdf, .jsonl and .parquet what they say; all others are text.

    Rows of JSON Lines and Parquet are documents with `id`, `text`, `title`, `uri` and `attributes`; the fields that
    `attribute_columns` names are attributes too. Other columns of a Parquet file are not read.
    """

    folder: str = Field(min_length=1)
    include: tuple[str, ...] = Field(tuple(f"**/*.{suffix}" for suffix in _SUFFIXES), min_length=1)
    exclude: tuple[str, ...] = ()
    format: SourceFormat = AUTO
    metadata: str | None = Field(None, description="JSON Lines in the folder: {path, title, uri, attributes}")
    attribute_columns: tuple[NonEmpty, ...] = ()

    @field_validator("folder", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    @field_validator("folder")
    @classmethod
    def _names_a_place(cls, value: str) -> str:
        if "://" in value and not _S3.fullmatch(value):
            raise ValueError(f"must be a folder or s3://bucket/prefix, got {value!r}")
        return value

    @field_validator("include", "exclude")
    @classmethod
    def _are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Pattern.of(text)
        return value

    @field_validator("attribute_columns")
    @classmethod
    def _are_extra(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        own = sorted({"id", "text", "title", "uri", "attributes", "path", "filename"} & set(value))
        if own:
            raise ValueError(f"names other columns than a document's own, got {own}")
        return value

    @property
    def remote(self) -> bool:
        """Whether it is on S3."""
        return self.folder.startswith("s3://")


class Canary(_Frozen):
    """A question whose answer is known: any of `expect` must be among the best `top_k` documents.

    `expect` names documents by path, filename, uri or document id.
    """

    question: NonEmpty
    expect: tuple[NonEmpty, ...] = Field(min_length=1)
    top_k: int = Field(5, ge=1, le=50)


class Gates(_Frozen):
    """What must hold before a version is promoted. One that fails is published, and the old one goes on serving.

    `max_shrink` is the share of the parent version's documents, or of its passages, that may be gone. `min_recall` is
    of the index's own search against exact search over the same vectors, at the spec's `recall_at`.
    """

    min_documents: int = Field(1, ge=1)
    max_shrink: float = Field(0.5, ge=0.0, le=1.0)
    min_recall: float = Field(0.9, ge=0.0, le=1.0)
    canaries: tuple[Canary, ...] = Field((), max_length=1000)


class IndexSpec(_Frozen):
    """What an index is built from.

    `uri` is a template with {path}, {stem}, {name} and {id}, for documents that bring no uri of their own. Without
    `chunking` (`chunking: null`) each document is one passage, cut by the embedder where it is too long.

    The recipe `auto` takes one that fits the number of passages and `memory_budget_bytes`, what the mapped index may
    take of a node's memory. Search parameters are found by measuring: the cheapest that give `recall_target` of the
    `recall_at` passages of exact search. Given `search_parameters` are taken as they are.

    `lexical` says how words are indexed, beside the vectors; `lexical: null` leaves them out.
    """

    name: Name
    source: Source
    embedder: ArtifactChoice
    chunking: Chunking | None = Chunking()
    lexical: Lexical | None = Lexical()
    recipe: str = Field(AUTO, min_length=1, description="auto, or a FAISS index factory string")
    memory_budget_bytes: int | None = Field(None, ge=1, description="for the recipe auto; none: 2 GiB")
    recall_target: float = Field(0.95, gt=0.0, le=1.0)
    recall_at: int = Field(10, ge=1, le=100)
    search_parameters: str = Field("", description="FAISS search parameters, such as nprobe=16; kept in the index")
    on_error: Literal["skip", "fail"] = "skip"
    max_document_bytes: int = Field(
        MAX_DOCUMENT_BYTES, ge=1, description="a larger file, or row of JSON Lines and Parquet, is left out"
    )
    uri: str = ""
    attributes: dict[str, Scalar] = Field(default_factory=dict, description="given to every document")
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.chunking and self.chunking.overlap_tokens > self.chunking.max_tokens // 2:
            raise ValueError(
                f"chunking.overlap_tokens must be at most half of max_tokens, got {self.chunking.overlap_tokens} "
                f"and {self.chunking.max_tokens}"
            )
        try:
            self.uri.format(path="", stem="", name="", id="")
        except (KeyError, IndexError, ValueError, AttributeError) as exc:
            raise ValueError(f"uri may use {{path}}, {{stem}}, {{name}} and {{id}}, got {self.uri!r}") from exc
        if self.recipe == AUTO and self.search_parameters:
            raise ValueError(
                "search_parameters belong to a recipe, but the recipe is auto; name one, or give a recall_target"
            )
        if self.recipe != AUTO and self.memory_budget_bytes is not None:
            raise ValueError(
                f"memory_budget_bytes chooses a recipe, but the recipe is {self.recipe!r}; leave one of them out"
            )
        return self


def load_spec(path: Path) -> IndexSpec:
    """Read and validate an index spec. Raises ConfigError with the file's name and every field that is wrong."""
    spec = read_yaml(path, IndexSpec, what="index spec")
    if spec.source.remote:
        return spec
    folder = str((path.absolute().parent / spec.source.folder).resolve())
    return spec.model_copy(update={"source": spec.source.model_copy(update={"folder": folder})})
