"""What must hold before an index version is promoted. Gates judge; what follows from it is the build's."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from rag_stack.index.format import EmbedderRef, GateResult, IndexMetadata
from rag_stack.index.spec import Canary, Gates
from rag_stack.types import Passage

# A question and a number -> so many of the best passages, best first.
Search: TypeAlias = Callable[[str, int], Sequence[Passage]]


def check_gates(
    gates: Gates,
    *,
    metadata: IndexMetadata,
    embedder: EmbedderRef,
    documents: int,
    search: Search,
    parent: IndexMetadata | None = None,
    parent_version: str | None = None,
) -> tuple[GateResult, ...]:
    """Every gate's result, in the same order each time; none stops the others. Blocking: searches for the canaries.

    `embedder` is the one the build meant to use, `documents` how many it gave to the writer. `search` asks the opened
    version. With a `parent`, which is what is promoted now and has the version `parent_version`, the two are compared.
    """
    return (
        *_content(gates, metadata, embedder, documents),
        *(ask_canary(number, canary, search) for number, canary in enumerate(gates.canaries, start=1)),
        *(_against(gates, metadata, parent, parent_version or "the parent") if parent else ()),
    )


def _content(gates: Gates, metadata: IndexMetadata, embedder: EmbedderRef, documents: int) -> Iterator[GateResult]:
    yield GateResult(
        name="counts",
        passed=0 < metadata.documents == documents and metadata.passages >= metadata.documents,
        detail=f"{metadata.documents} documents with {metadata.passages} passages, of {documents} documents given",
    )
    yield GateResult(
        name="min_documents",
        passed=metadata.documents >= gates.min_documents,
        detail=f"{metadata.documents} documents, at least {gates.min_documents} expected",
    )
    yield GateResult(
        name="min_recall",
        passed=metadata.recall >= gates.min_recall,
        detail=f"recall at {metadata.recall_at} is {metadata.recall} over {metadata.recall_queries} queries, at least "
        f"{gates.min_recall} expected",
    )
    yield GateResult(
        name="embedder",
        passed=metadata.embedder == embedder,
        detail=f"made with {_named(metadata.embedder)}"
        + ("" if metadata.embedder == embedder else f", expected {_named(embedder)}"),
    )


def ask_canary(number: int, canary: Canary, search: Search) -> GateResult:
    """Whether a search finds what a question shall find. Blocking."""
    documents: dict[str, Passage] = {}
    for passage in search(canary.question, canary.top_k):
        documents.setdefault(passage.document_id, passage)
    ranked = [_names(passage) for passage in documents.values()]
    place = next((place for place, names in enumerate(ranked, start=1) if names & set(canary.expect)), None)
    wanted = " or ".join(repr(each) for each in canary.expect)
    if place is None:
        best = ", ".join(repr(_best_name(passage)) for passage in documents.values()) or "nothing"
        detail = f"{canary.question!r} does not find {wanted} in the best {canary.top_k} passages, but {best}"
    else:
        detail = f"{canary.question!r} finds {wanted} as number {place} of the documents"
    return GateResult(name=f"canary {number}", passed=place is not None, detail=detail)


def _against(gates: Gates, metadata: IndexMetadata, parent: IndexMetadata, version: str) -> Iterator[GateResult]:
    for what, now, before in (
        ("documents", metadata.documents, parent.documents),
        ("passages", metadata.passages, parent.passages),
    ):
        # In whole numbers, so that a bound of a tenth is met by a tenth.
        least = before - int(gates.max_shrink * before + 1e-9)
        yield GateResult(
            name=f"max_shrink of {what}",
            passed=now >= least,
            detail=f"{now} {what}, {before} in {version}; at least {least} expected (max_shrink {gates.max_shrink})",
            against=version,
        )
    same = metadata.embedder == parent.embedder
    other = f"but {version} was made with {_named(parent.embedder)}: whoever serves must change too"
    yield GateResult(
        name="same embedder",
        passed=True,
        detail=f"{_named(metadata.embedder)}, {f'as {version}' if same else other}",
        against=version,
    )


def _names(passage: Passage) -> set[str]:
    attributes = passage.attributes
    named = (passage.document_id, passage.uri, attributes.get("path"), attributes.get("filename"))
    return {str(name) for name in named if name}


def _best_name(passage: Passage) -> str:
    return str(passage.attributes.get("path") or passage.attributes.get("filename") or passage.document_id)


def _named(embedder: EmbedderRef) -> str:
    return f"{embedder.name!r} ({embedder.digest})"
