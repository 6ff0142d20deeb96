"""The index spec: a YAML file that says what is indexed and how. Fields and validation; it does nothing."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rag_stack.config import ArtifactChoice, Name, read_yaml
from rag_stack.index.format import Chunking

SourceFormat: TypeAlias = Literal["auto", "text", "markdown", "jsonl"]
Scalar: TypeAlias = str | float | bool
NonEmpty: TypeAlias = Annotated[str, StringConstraints(min_length=1)]

AUTO: Final = "auto"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """A folder of documents.

    A relative folder is relative to the spec file's own folder, whatever the current directory is. `auto` goes by the
    file's suffix: .md and .markdown are Markdown, .jsonl is JSON Lines, all others are text.
    """

    folder: Path
    include: tuple[str, ...] = Field(("**/*.txt", "**/*.md", "**/*.jsonl"), min_length=1)
    exclude: tuple[str, ...] = ()
    format: SourceFormat = "auto"
    metadata: str | None = Field(None, description="JSON Lines in the folder: {path, title, uri, attributes}")


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
    """

    name: Name
    source: Source
    embedder: ArtifactChoice
    chunking: Chunking | None = Chunking()
    recipe: str = Field("Flat", min_length=1, description="a FAISS index factory string")
    search_parameters: str = Field("", description="FAISS search parameters, such as nprobe=16; kept in the index")
    on_error: Literal["skip", "fail"] = "skip"
    uri: str = ""
    attributes: dict[str, Scalar] = Field(default_factory=dict, description="given to every document")

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
        return self


def load_spec(path: Path) -> IndexSpec:
    """Read and validate an index spec. Raises ConfigError with the file's name and every field that is wrong."""
    spec = read_yaml(path, IndexSpec, what="index spec")
    folder = (path.absolute().parent / spec.source.folder).resolve()
    return spec.model_copy(update={"source": spec.source.model_copy(update={"folder": folder})})
