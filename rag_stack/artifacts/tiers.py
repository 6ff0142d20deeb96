"""How an artifact comes to this node: its cache, else a mirror on it, else its peers, else the object store."""

import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.fetch import Origin, OriginPlan, Plan, Source, fetch
from rag_stack.artifacts.manifest import ArtifactKind, Manifest
from rag_stack.artifacts.mirror import Mirror, open_mirror
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.partial import Partial
from rag_stack.artifacts.pin import Pin
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactCorruptError, ConfigError
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, Recorder, record_load


@dataclass(frozen=True, slots=True)
class LocalArtifact:
    """An artifact on this node: a read-only directory, where it came from and what that took.

    `source` is where most of it came from, `moved` the bytes that came from elsewhere. It stays on the node while
    `pin` is held, which is until this process ends unless it is released.
    """

    path: Path
    manifest: Manifest
    source: Source
    seconds: float
    size_bytes: int
    pin: Pin
    moved: Mapping[Source, int] = field(default_factory=dict)


class Peers(Protocol):
    """The other nodes of this cluster."""

    def plan(self, partial: Partial, origin: Origin) -> Plan:
        """How to get what is missing, together with the nodes that have it or fetch it too."""


class Tiers:
    """The places an artifact can be, nearest first. Without `mirror` or `peers` that tier is absent."""

    def __init__(
        self,
        catalog: Catalog,
        cache: NodeCache,
        recorder: Recorder,
        *,
        peers: Peers | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.catalog = catalog
        self.cache = cache
        self._recorder = recorder
        self._peers = peers
        self._mirror = mirror

    def resolve(
        self, kind: ArtifactKind, name: str, version: str | None = None, *, digest: str | None = None
    ) -> Manifest:
        """The manifest of a version, or of the promoted one; by its digest, from this node if it is there.

        A replica whose artifacts are all cached so starts without the object store. Raises ArtifactNotFoundError, or
        ArtifactCorruptError when the version's content is not that of the digest.
        """
        cached = self._here(digest) if digest else None
        if cached is not None and (cached.kind, cached.name) == (kind, name):
            return cached
        manifest = self.catalog.resolve(kind, name, version)
        if digest is not None and manifest.digest != digest:
            raise ArtifactCorruptError(
                f"{str(manifest.ref)!r} has digest {manifest.digest} in {self.catalog.store.url}, the release names "
                f"{digest}; it is not the same content: correct the release, or publish again"
            )
        return manifest

    def ensure_local(self, manifest: Manifest) -> LocalArtifact:
        """Bring an artifact to this node and say what it took. Blocking; of all processes of a node one fetches.

        Raises ArtifactCorruptError when stored or cached bytes are not those of the manifest, ArtifactError when the
        object store does not answer or there is no room.
        """
        started = time.perf_counter()
        moved: Counter[Source] = Counter()

        def fill(partial: Partial) -> None:
            with closing(Origin(self.catalog.store, manifest)) as origin:
                plan = self._peers.plan(partial, origin) if self._peers else OriginPlan(origin, partial.missing())
                moved.update(fetch(partial, plan))

        # Before looking, so that what is found cannot be evicted before it is opened.
        pin = self.cache.pin(manifest)
        try:
            path = self.cache.find(manifest) or self._mirrored(manifest, moved) or self.cache.insert(manifest, fill)
        except BaseException:
            pin.release()
            raise
        # Nothing moved when it was here, or another process on this node was faster.
        source: Source = max(moved, key=lambda source: moved[source]) if moved else "cache"
        local = LocalArtifact(path, manifest, source, time.perf_counter() - started, manifest.size_bytes, pin, moved)
        self._record(local)
        return local

    def _here(self, digest: str) -> Manifest | None:
        return self.cache.manifest(digest) or (self._mirror.manifest(digest) if self._mirror else None)

    def _mirrored(self, manifest: Manifest, moved: Counter[Source]) -> Path | None:
        """Where the mirror has it. Its bytes count as moved: they were read to be verified."""
        path = self._mirror.find(manifest) if self._mirror else None
        if path is not None:
            moved["mirror"] = manifest.size_bytes
        return path

    def _record(self, local: LocalArtifact) -> None:
        labels = {"kind": local.manifest.kind, "stage": "fetch"}
        # The time, and so the rate, is told once: several sources were read side by side.
        size_bytes = local.moved.get(local.source, 0)
        record_load(self._recorder, **labels, source=local.source, seconds=local.seconds, size_bytes=size_bytes)
        # What the cache had is told as bytes without a rate, since none of them moved.
        others = {source: size for source, size in local.moved.items() if source != local.source}
        for source, size_bytes in (others if local.moved else {"cache": local.size_bytes}).items():
            self._recorder.record(ARTIFACT_LOAD_BYTES, size_bytes, {**labels, "source": source})


def open_tiers(
    config: ArtifactsConfig, recorder: Recorder, *, peers: Peers | None = None, cache: Path | None = None
) -> Tiers:
    """The tiers that a release names. A node that keeps its cache elsewhere says so with RAG_STACK_CACHE.

    With RAG_STACK_CACHE_LIMIT_BYTES it says what that may hold, and with RAG_STACK_MIRROR where its mirror is. `cache`
    is what was asked for on the command line, and goes before all. Raises ConfigError for a limit that is no number.
    """
    directory = cache or Path(os.environ.get("RAG_STACK_CACHE") or config.cache)
    node_cache = NodeCache(directory, limit_bytes=_limit_bytes(config))
    mirror = open_mirror(os.environ.get("RAG_STACK_MIRROR"))
    return Tiers(Catalog(open_store(config.root)), node_cache, recorder, peers=peers, mirror=mirror)


def _limit_bytes(config: ArtifactsConfig) -> int | None:
    told = os.environ.get("RAG_STACK_CACHE_LIMIT_BYTES")
    if not told:
        return config.cache_limit_bytes
    if not told.isdecimal() or int(told) == 0:
        raise ConfigError(f"RAG_STACK_CACHE_LIMIT_BYTES is {told!r}; expected a number of bytes, such as 40000000000")
    return int(told)
