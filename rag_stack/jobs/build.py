"""The build path on one page: documents -> cut -> embeddings -> index files -> gates -> publish -> promote.

Documents come in source order and go on in windows, so that nothing here grows with the corpus but the keys of its
vectors. What was embedded is on the object store every few seconds; a build that is killed, fails, or finds most of it
known goes on from there. Nothing is promoted before all of it is published, has passed its gates and opens.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    GateFailedError,
    IndexVersionError,
    PromotionConflictError,
    RagStackError,
)
from rag_stack.index.builder import IndexWriter
from rag_stack.index.documents import Document
from rag_stack.index.embeddings import FLUSH_ROWS, EmbeddingStore, fingerprint, input_keys
from rag_stack.index.format import Chunking, EmbedderRef, GateResult, IndexMetadata, Lexical, Skipped
from rag_stack.index.gate import check_gates
from rag_stack.index.reader import IndexVersion, set_search_threads
from rag_stack.index.spec import AUTO, Gates, IndexSpec
from rag_stack.jobs.embedding import Embedding, Model, OnProgress
from rag_stack.jobs.filling import Filling, Share
from rag_stack.jobs.intake import Intake
from rag_stack.jobs.scratch import scratch
from rag_stack.retrieval.candidates import best_passages


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How an index is built, and whether it is promoted; see IndexSpec for what the fields of the same names mean.

    `force` promotes a version whose gates fail, which the catalog remembers together with `reason`. `by` is who asks
    (default: user@host). After `flush_passages`, or 20 seconds, what was embedded is stored: a build that is killed
    embeds no more than that again.
    """

    chunking: Chunking | None = field(default_factory=Chunking)
    lexical: Lexical | None = field(default_factory=Lexical)
    recipe: str = AUTO
    memory_budget_bytes: int | None = None
    recall_target: float = 0.95
    recall_at: int = 10
    search_parameters: str = ""
    on_error: Literal["skip", "fail"] = "skip"
    gates: Gates = field(default_factory=Gates)
    promote: bool = True
    force: bool = False
    by: str | None = None
    reason: str = ""
    flush_passages: int = FLUSH_ROWS

    @classmethod
    def of(
        cls, spec: IndexSpec, *, promote: bool = True, force: bool = False, by: str | None = None, reason: str = ""
    ) -> Self:
        """A spec's."""
        return cls(
            chunking=spec.chunking,
            lexical=spec.lexical,
            recipe=spec.recipe,
            memory_budget_bytes=spec.memory_budget_bytes,
            recall_target=spec.recall_target,
            recall_at=spec.recall_at,
            search_parameters=spec.search_parameters,
            on_error=spec.on_error,
            gates=spec.gates,
            promote=promote,
            force=force,
            by=by,
            reason=reason,
        )


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build published, what it cost, and what it left out.

    `embedded` of the `passages` were embedded now, with `embed_rate` a second, and `reused` were known: by their
    vectors, or because the same text is there twice. `promoted` says whether the version is served from now on, and
    `not_promoted` why not. `skipped` names the first of the `skipped_documents` that were left out.
    `full_rebuild_reason` says why nothing of the version before could be reused, if so.
    """

    manifest: Manifest
    documents: int
    passages: int
    embedded: int
    reused: int
    skipped: tuple[Skipped, ...]
    skipped_documents: int
    gates: tuple[GateResult, ...]
    promoted: bool
    not_promoted: str
    seconds: float
    embed_rate: float
    full_rebuild_reason: str | None = None


class NotPromotedError(RagStackError):
    """A build has published a version, and could not promote it; the report tells of it."""

    def __init__(self, message: str, *, report: BuildReport) -> None:
        super().__init__(message)
        self.report = replace(report, not_promoted=message)


class GateRefusedError(GateFailedError, NotPromotedError):
    """A gate of a build has failed."""


class OvertakenError(PromotionConflictError, NotPromotedError):
    """Another build was faster."""


def build_version(
    documents: Iterable[Document | Skipped],
    *,
    name: str,
    embedding: Embedding,
    settings: BuildSettings,
    tiers: Tiers,
    progress: OnProgress | None = None,
    share: Share | None = None,
) -> BuildReport:
    """Build, publish and promote a version of the index `name` from documents. Blocking, seconds to hours.

    Embeds only inputs that no earlier build of this name, with this embedder and chunking, has embedded. The same
    documents and settings publish the same version again, which changes nothing. `share` (0..1) tells how much of
    the documents was read so far, for an estimate of the time that is left.

    Raises DocumentError with `on_error: fail`, IndexVersionError when there is nothing to index, GateRefusedError when
    a gate fails (the version is published, and not promoted), OvertakenError when another build was faster (the same),
    ArtifactError when the object store or the disk fails. What was embedded stays in any case.
    """
    started = time.perf_counter()
    before = _Before.of(name, embedding.model, settings, tiers)
    # One thread adds vectors in one order: graphs come out the same each time.
    set_search_threads(1)
    with scratch() as folder:
        vectors = EmbeddingStore(
            tiers.catalog.store,
            name=name,
            fingerprint=_fingerprint(embedding.model, settings),
            dimension=embedding.model.dimension,
            scratch=folder,
            flush_rows=settings.flush_passages,
        )
        intake = Intake(documents, model=embedding.model, chunking=settings.chunking, on_error=settings.on_error)
        filling = Filling(vectors, embedding, progress=progress, share=share)
        directory = folder / "index"
        directory.mkdir()
        with (
            IndexWriter(directory, dimension=embedding.model.dimension, lexical=settings.lexical) as writer,
            _kept(vectors),
        ):
            for window, last in intake.windows(filling.expect):
                filling.fill(window, last=last)
                for cut in window:
                    writer.add(cut.document, cut.passages, vectors.vectors(input_keys(cut.inputs)))
            intake.require_some(name)
            metadata = writer.finish(
                embedder=EmbedderRef(name=embedding.model.name, digest=embedding.model.digest),
                recipe=settings.recipe,
                search_parameters=settings.search_parameters,
                recall_target=settings.recall_target,
                recall_at=settings.recall_at,
                memory_budget_bytes=settings.memory_budget_bytes,
                chunking=settings.chunking,
                skipped=intake.skipped,
                skipped_documents=intake.skipped_documents,
                queries=_questions(embedding.model, settings.gates),
            )
        gates = _judge(directory, name, metadata, embedding.model, settings, before, documents=intake.documents)
        manifest = tiers.catalog.publish(
            directory,
            kind="indexes",
            name=name,
            metadata=metadata.with_gates(gates).to_json(),
            parent=before.parent,
        )
        _compact(vectors)
    _require_opens(manifest, tiers, embedder_digest=embedding.model.digest)
    failed = [each for each in gates if not each.passed]
    report = BuildReport(
        manifest=manifest,
        documents=metadata.documents,
        passages=metadata.passages,
        embedded=vectors.embedded,
        # Ray may have embedded more than is there: what has changed in the source meanwhile.
        reused=max(0, metadata.passages - vectors.embedded),
        skipped=metadata.skipped,
        skipped_documents=metadata.skipped_documents,
        gates=gates,
        promoted=False,
        not_promoted="it was asked not to be",
        seconds=time.perf_counter() - started,
        embed_rate=filling.rate,
        full_rebuild_reason=before.full_rebuild_reason,
    )
    if failed and not settings.force:
        raise GateRefusedError(_refusal(manifest, failed), report=report)
    if settings.promote:
        _promote(report, tiers, settings, before, forced=bool(failed))
        return replace(report, promoted=True, not_promoted="", seconds=time.perf_counter() - started)
    return report


@dataclass(frozen=True, slots=True)
class _Before:
    """What is promoted when a build begins: the version, what is known of it, and why nothing of it can be reused."""

    version: str | None
    metadata: IndexMetadata | None
    full_rebuild_reason: str | None = None

    @classmethod
    def of(cls, name: str, model: Model, settings: BuildSettings, tiers: Tiers) -> Self:
        pointer = tiers.catalog.promoted("indexes", name)
        if pointer is None:
            return cls(None, None)
        try:
            manifest = tiers.catalog.manifest(ArtifactRef("indexes", name, pointer.version))
            metadata = IndexMetadata.of(manifest)
        except (ArtifactOutdatedError, IndexVersionError):
            return cls(pointer.version, None, f"{pointer.version} was built by an older rag_stack")
        except (ArtifactNotFoundError, ArtifactCorruptError) as exc:
            return cls(pointer.version, None, f"{pointer.version}, which is promoted, cannot be read: {exc}")
        old, new = metadata.embedder, EmbedderRef(name=model.name, digest=model.digest)
        if old.digest != new.digest:
            reason = f"the embedder changed from {_told(old, new)} to {_told(new, old)}"
            return cls(pointer.version, metadata, reason)
        if metadata.chunking != settings.chunking:
            before, now = (_cut_as(each) for each in (metadata.chunking, settings.chunking))
            return cls(pointer.version, metadata, f"the chunking changed from {before} to {now}")
        return cls(pointer.version, metadata)

    @property
    def parent(self) -> str | None:
        """The version that the new one was made from."""
        return self.version if self.metadata else None


def _judge(
    directory: Path,
    name: str,
    metadata: IndexMetadata,
    model: Model,
    settings: BuildSettings,
    before: _Before,
    *,
    documents: int,
) -> tuple[GateResult, ...]:
    # Not published yet: its address means nothing, and it has no digests.
    manifest = Manifest(kind="indexes", name=name, version="unpublished", files=(), metadata=metadata.to_json())
    index = IndexVersion.open(directory, manifest, embedder_digest=model.digest)

    return check_gates(
        settings.gates,
        metadata=metadata,
        embedder=EmbedderRef(name=model.name, digest=model.digest),
        documents=documents,
        search=lambda question, top_k: best_passages(index, question, model.encode([question]), top_k),
        parent=before.metadata,
        parent_version=before.version,
    )


def _promote(report: BuildReport, tiers: Tiers, settings: BuildSettings, before: _Before, *, forced: bool) -> None:
    manifest = report.manifest
    try:
        tiers.catalog.promote(
            manifest.ref, expected_version=before.version, by=settings.by, reason=settings.reason, forced=forced
        )
    except PromotionConflictError as exc:
        winner = tiers.catalog.promoted("indexes", manifest.name)
        if winner is not None and (winner.version, winner.digest) == (manifest.version, manifest.digest):
            # The other one has built the same.
            return
        now = f"{winner.version!r} was promoted by {winner.by} at {winner.promoted_at}" if winner else exc.message
        raise OvertakenError(
            f"{str(manifest.ref)!r} is published, but not promoted: {now}, while this build began with "
            f"{before.version or 'nothing'!r} promoted; build again, or promote it with `rag-stack index promote`",
            report=report,
        ) from exc


def _refusal(manifest: Manifest, failed: Sequence[GateResult]) -> str:
    told = "; ".join(f"{each.name}: {each.detail}" for each in failed)
    return (
        f"{str(manifest.ref)!r} is published, but not promoted: {len(failed)} of its gates failed ({told}); mend the "
        "source or the spec's gates, or build with --force and a --reason"
    )


def _require_opens(manifest: Manifest, tiers: Tiers, *, embedder_digest: str) -> None:
    """Nobody is led to a version that does not open."""
    local = tiers.ensure_local(manifest)
    try:
        IndexVersion.open(local.path, manifest, embedder_digest=embedder_digest)
    finally:
        local.pin.release()


def _questions(model: Model, gates: Gates) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]] | None":
    """The canaries' questions as vectors: recall is measured with them too."""
    return model.encode([each.question for each in gates.canaries]) if gates.canaries else None


def _fingerprint(model: Model, settings: BuildSettings) -> str:
    return fingerprint(embedder_digest=model.digest, chunking=settings.chunking, dimension=model.dimension)


def _compact(vectors: EmbeddingStore) -> None:
    try:
        vectors.compact()
    except ArtifactError as exc:
        # The version is published, and what it needs is there.
        logging.getLogger(__name__).warning("the stored embeddings could not be compacted: %s", exc)


@contextmanager
def _kept(vectors: EmbeddingStore) -> Iterator[None]:
    """What was embedded is stored, however the block ends."""
    try:
        yield
    except BaseException:
        try:
            vectors.flush()
        except ArtifactError as exc:
            logging.getLogger(__name__).warning("what was embedded last could not be stored: %s", exc)
        raise
    vectors.flush()


def _told(embedder: EmbedderRef, other: EmbedderRef) -> str:
    """Its name, with the digest where the names are the same."""
    return embedder.name if embedder.name != other.name else f"{embedder.name} ({embedder.digest})"


def _cut_as(chunking: Chunking | None) -> str:
    return f"{chunking.max_tokens} tokens with {chunking.overlap_tokens} of overlap" if chunking else "whole documents"
