"""How an artifact comes to this node: the cache if it is there, else the object store, once, and verified."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.local_file import translated
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, ARTIFACT_LOAD_SECONDS, Recorder

Source: TypeAlias = Literal["cache", "object_store"]
_COPY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LocalArtifact:
    """An artifact on this node: a read-only directory, where it came from and what that took."""

    path: Path
    manifest: Manifest
    source: Source
    seconds: float
    size_bytes: int


class Tiers:
    """The places an artifact can be, nearest first."""

    def __init__(self, catalog: Catalog, cache: NodeCache, recorder: Recorder) -> None:
        self.catalog = catalog
        self.cache = cache
        self._recorder = recorder

    def ensure_local(self, manifest: Manifest) -> LocalArtifact:
        """Bring an artifact to this node and say what it took. Blocking; the origin is read once a node.

        Raises ArtifactCorruptError when the stored or cached bytes are not those of the manifest.
        """
        started = time.perf_counter()
        source: Source = "cache"
        path = self.cache.find(manifest)
        if path is None:
            origin = _Origin(self.catalog.store, manifest)
            path = self.cache.insert(manifest, origin.fetch)
            # Nothing was read when another process on this node was faster.
            source = "object_store" if origin.files_read else "cache"
        seconds = time.perf_counter() - started
        labels = {"kind": manifest.kind, "stage": "fetch", "source": source}
        self._recorder.record(ARTIFACT_LOAD_SECONDS, seconds, labels)
        self._recorder.record(ARTIFACT_LOAD_BYTES, manifest.size_bytes, labels)
        return LocalArtifact(path, manifest, source, seconds, manifest.size_bytes)


class _Origin:
    """Reads one artifact's files from the object store."""

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self.files_read = 0

    def fetch(self, entry: FileEntry, path: Path) -> None:
        """Copy one file. Whether the bytes are right is the cache's to check."""
        key = f"{self._manifest.ref}/{entry.path}"
        try:
            source = self._store.open(key)
        except ArtifactNotFoundError as exc:
            raise ArtifactCorruptError(
                f"file {entry.path!r} of {str(self._manifest.ref)!r} is gone from {self._store.url}; delete the rest "
                "of that folder and publish it again"
            ) from exc
        with source, translated(f"copy {self._store.url}/{key} to", path), path.open("wb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        self.files_read += 1


def open_tiers(config: ArtifactsConfig, recorder: Recorder) -> Tiers:
    """The tiers that a release names."""
    return Tiers(Catalog(ObjectStore(config.root)), NodeCache(config.cache), recorder)
