"""What a fetch has so far: files of their final size, filled chunk by chunk, in any order.

Only verified chunks are written, and what a killed fetch left is found again by its digests, so no record of progress
can be wrong. `<hex>.have` is a hint for peers, one byte a chunk: they verify what they get.
"""

import mmap
import os
import threading
from pathlib import Path
from typing import Final

from rag_stack.artifacts.chunk import Buffer, Chunk, matching
from rag_stack.artifacts.manifest import Manifest
from rag_stack.errors import ArtifactCorruptError

HAVE: Final = 1


class Partial:
    """One artifact on its way into the cache. Its fetcher holds the artifact's lock; raises OSError throughout."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.chunks = manifest.chunks()
        self._directory = directory
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}
        for entry in manifest.files:
            path = directory / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                # Whoever was killed while it made the whole visible had made it read-only.
                path.chmod(0o644)
            with path.open("ab") as file:
                file.truncate(entry.size_bytes)
        self._have = _HaveMap(have_path(directory), len(self.chunks))

    def missing(self) -> list[Chunk]:
        """The chunks that are not there yet. Reads and verifies what an earlier fetch left."""
        present = matching(self._directory, self.chunks)
        for index in present:
            self._have.mark(index)
        return [chunk for chunk in self.chunks if chunk.index not in present]

    def write(self, chunk: Chunk, data: Buffer) -> None:
        """Verify a chunk and write it; several threads may. Raises ArtifactCorruptError, then nothing is written."""
        try:
            chunk.verify(data)
        except ArtifactCorruptError as exc:
            raise ArtifactCorruptError(
                f"{exc} in {str(self.manifest.ref)!r}; if it comes so each time its stored copy is damaged: delete "
                "that folder from the object store and publish it again"
            ) from exc
        rest, offset = memoryview(data).cast("B"), chunk.offset
        while rest:
            written = os.pwrite(self._descriptor(chunk.path), rest, offset)
            rest, offset = rest[written:], offset + written
        self._have.mark(chunk.index)

    def close(self) -> None:
        """Let go of the files; what is there stays."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
            self._have.close()

    def _descriptor(self, path: str) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(self._directory / path, os.O_WRONLY | os.O_CLOEXEC)
            return self._descriptors[path]


def have_path(directory: Path) -> Path:
    """Where a partial artifact's hint for peers is."""
    return directory.with_name(f"{directory.name}.have")


class _HaveMap:
    """A mapped file with one byte a chunk, so that another process sees progress as it is made."""

    def __init__(self, path: Path, count: int) -> None:
        self._map: mmap.mmap | None = None
        # Never cut: one that a killed fetch left may be mapped by a reader, which would not survive that.
        with path.open("ab") as file:
            file.truncate(max(count, 1))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
            self._map[:] = bytes(max(count, 1))

    def mark(self, index: int) -> None:
        if self._map is not None:
            self._map[index] = HAVE

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
