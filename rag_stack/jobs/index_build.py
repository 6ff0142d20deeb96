"""Builds an index version from its spec: read, cut, embed, write, publish, promote."""

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import DocumentError, IndexVersionError
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import read_documents
from rag_stack.index.format import EmbedderRef, Skipped
from rag_stack.index.reader import IndexVersion, Vectors, set_search_threads
from rag_stack.index.spec import IndexSpec
from rag_stack.retrieval.embedder import Embedder

_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the embedding is; `rate` in passages a second, `eta_s` in seconds."""

    done: int
    total: int
    rate: float
    eta_s: float


OnProgress: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build published, and what it left out."""

    manifest: Manifest
    documents: int
    passages: int
    skipped: tuple[Skipped, ...]
    seconds: float


def build_index(
    spec: IndexSpec, *, tiers: Tiers, workers: int = 1, promote: bool = True, progress: OnProgress | None = None
) -> BuildReport:
    """Build, publish and promote an index version. Blocking, minutes; nothing is published unless all went well.

    The same documents, embedder and settings publish the same version again, which changes nothing. Raises
    ArtifactNotFoundError without the embedder, DocumentError and IndexVersionError for what cannot be indexed.
    """
    started = time.perf_counter()
    found = read_documents(spec)
    embedder = load_embedder(spec, tiers=tiers)
    # One thread adds vectors in one order: graphs come out the same each time.
    set_search_threads(1)
    cut = cut_documents(
        found.documents, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=spec.chunking
    )
    if spec.on_error == "fail" and cut.skipped:
        raise DocumentError(f"cannot index {cut.skipped[0].document!r}: it {cut.skipped[0].reason}; exclude it")
    vectors = embed_all(embedder, cut.inputs, workers=workers, progress=progress)
    with tempfile.TemporaryDirectory(prefix="rag-stack-index-") as folder:
        metadata = write_index(
            Path(folder),
            cut,
            vectors,
            embedder=EmbedderRef(name=embedder.name, digest=embedder.digest),
            recipe=spec.recipe,
            search_parameters=spec.search_parameters,
            chunking=spec.chunking,
            skipped=found.skipped,
        )
        manifest = tiers.catalog.publish(Path(folder), kind="indexes", name=spec.name, metadata=metadata.to_json())
    # Nobody is led to a version that does not open.
    IndexVersion.open(tiers.ensure_local(manifest).path, manifest, embedder_digest=embedder.digest)
    if promote:
        tiers.catalog.promote(manifest.ref)
    seconds = time.perf_counter() - started
    return BuildReport(manifest, len(cut.documents), len(cut.passages), metadata.skipped, seconds)


def load_embedder(spec: IndexSpec, *, tiers: Tiers) -> Embedder:
    """Load a spec's embedder and check that its chunks fit. Raises IndexVersionError when they do not."""
    manifest = tiers.catalog.resolve("models", spec.embedder.name, spec.embedder.version)
    local = tiers.ensure_local(manifest)
    embedder = Embedder.load(local.path, name=manifest.name, digest=manifest.digest, threads=1)
    if spec.chunking and spec.chunking.max_tokens > embedder.max_tokens - 2:
        raise IndexVersionError(
            f"chunking.max_tokens is {spec.chunking.max_tokens}, but the embedder {embedder.name!r} takes "
            f"{embedder.max_tokens - 2} tokens; lower it, leaving some for the title"
        )
    return embedder


def embed_all(
    embedder: Embedder, inputs: Sequence[str], *, workers: int = 1, progress: OnProgress | None = None
) -> Vectors:
    """Embed in batches of similar length, which wastes little on padding: float32 [inputs, d], in the inputs' order.

    Longest first, so that the time left is over- and not underestimated. Workers with a thread each instead of one
    with many: 24-32 passages a second against 12-24 (16-18 with one of one; 155 tokens, two busy cores), since nobody
    spins at a barrier when another process takes a core.
    """
    order = sorted(range(len(inputs)), key=lambda position: -len(inputs[position]))
    batches = [order[first : first + _BATCH] for first in range(0, len(order), _BATCH)]
    vectors = np.zeros((len(inputs), embedder.dimension), np.float32)

    def embed(batch: list[int]) -> int:
        vectors[batch] = embedder.encode([inputs[position] for position in batch], batch_size=_BATCH)
        return len(batch)

    started, done = time.perf_counter(), 0
    with ThreadPoolExecutor(workers, thread_name_prefix="embed") as pool:
        try:
            for future in as_completed([pool.submit(embed, batch) for batch in batches]):
                done += future.result()
                rate = done / max(time.perf_counter() - started, 1e-9)
                if progress is not None:
                    progress(Progress(done, len(order), rate, (len(order) - done) / rate))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return vectors
