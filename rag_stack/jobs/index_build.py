"""Builds an index version from its spec: opens the source, loads the embedder, chooses who embeds."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import IndexVersionError
from rag_stack.index.cutting import SPECIAL_TOKENS
from rag_stack.index.documents import list_source
from rag_stack.index.format import Chunking
from rag_stack.index.source import open_source
from rag_stack.index.spec import IndexSpec
from rag_stack.jobs.build import BuildReport, BuildSettings, build_version
from rag_stack.jobs.embedding import Embedding, Model, OnProgress
from rag_stack.jobs.engine import Engine
from rag_stack.jobs.lazy_embedder import LazyEmbedder
from rag_stack.jobs.local_embedding import LocalEmbedding
from rag_stack.jobs.ray_embedding import WORTH_RAY, RayEmbedding
from rag_stack.jobs.reading import CountedReading, SourceReader
from rag_stack.metrics import MemoryRecorder

if TYPE_CHECKING:
    from rag_stack.retrieval.embedder import Embedder

Load: TypeAlias = Callable[[str], Model]


@dataclass(frozen=True, slots=True)
class EmbedderLoad:
    """Loads an embedder on any node that reaches the object store, onto "cpu" or "cuda". Can be pickled."""

    root: str
    cache: Path
    manifest: Manifest

    def __call__(self, device: str = "cpu") -> "Embedder":
        """Blocking: brings the embedder to the node first. Raises ArtifactError."""
        # Imports torch.
        from rag_stack.retrieval.embedder import Embedder

        embedder = Embedder.load(self.path(), name=self.manifest.name, digest=self.manifest.digest, threads=1)
        if device != "cpu":
            embedder.move(device)
        return embedder

    def lazily(self) -> Model:
        """For a process that may have nothing to embed. Raises ArtifactError."""
        return LazyEmbedder.of(self.path(), self, name=self.manifest.name, digest=self.manifest.digest)

    def path(self) -> Path:
        """Where it is on this node, once it is there. Blocking."""
        tiers = open_tiers(ArtifactsConfig(root=self.root, cache=self.cache), MemoryRecorder())
        return tiers.ensure_local(self.manifest).path


def build_index(
    spec: IndexSpec,
    *,
    tiers: Tiers,
    engine: Engine = "auto",
    workers: int = 1,
    promote: bool = True,
    force: bool = False,
    by: str | None = None,
    reason: str = "",
    progress: OnProgress | None = None,
    load: Load | None = None,
    batch: int | None = None,
) -> BuildReport:
    """Build, publish and promote a version of a spec's index. Blocking; raises as `build_version` does.

    `engine` says who embeds: `local` threads of this process, `ray` an actor pool on Ray Data, `auto` Ray only when
    there is more to embed than is done while Ray starts. `workers` threads, or actors where Ray is of this build's own.
    `load` gives another embedder than the spec's, and `batch` is what a Ray actor gets of it at once (for tests).
    """
    # Before the embedder, which takes seconds.
    tree = open_source(spec.source)
    listing = list_source(spec, tree)
    model: Model
    if load is None:
        stored = embedder_load(spec, tiers=tiers)
        load, model = stored, stored.lazily()
    else:
        model = load("cpu")
    _require_room(spec.chunking, model)
    reader = SourceReader(spec, tree)
    embedding: Embedding = LocalEmbedding(model, workers=workers)
    if engine != "local":
        worth = 0 if engine == "ray" else WORTH_RAY
        embedding = RayEmbedding(
            LocalEmbedding(model, workers=workers),
            reader,
            listing.files,
            load,
            workers=workers,
            batch=batch,
            worth=worth,
        )
    reading = CountedReading(reader, listing.files)
    return build_version(
        chain(listing.skipped, reading),
        name=spec.name,
        embedding=embedding,
        settings=BuildSettings.of(spec, promote=promote, force=force, by=by, reason=reason),
        tiers=tiers,
        progress=progress,
        share=reading.share,
    )


def embedder_load(spec: IndexSpec, *, tiers: Tiers) -> EmbedderLoad:
    """How a spec's embedder is loaded. Raises ArtifactNotFoundError when there is none."""
    manifest = tiers.catalog.resolve("models", spec.embedder.name, spec.embedder.version)
    return EmbedderLoad(tiers.catalog.store.url, tiers.cache.directory, manifest)


def _require_room(chunking: Chunking | None, model: Model) -> None:
    if chunking and chunking.max_tokens > model.max_tokens - SPECIAL_TOKENS:
        raise IndexVersionError(
            f"chunking.max_tokens is {chunking.max_tokens}, but the embedder {model.name!r} takes "
            f"{model.max_tokens - SPECIAL_TOKENS} tokens; lower it, leaving some for the title"
        )
