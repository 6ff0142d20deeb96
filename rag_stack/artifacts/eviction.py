"""Who leaves the node cache when it is full: the least recently used that no live process has pinned."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rag_stack.artifacts.local_file import exclusive, translated
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.pin import is_pinned, unpinned
from rag_stack.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class CachedArtifact:
    """What lies in the cache under one digest. `used_at` is Unix time."""

    hex: str
    directory: Path
    size_bytes: int
    used_at: float
    pinned: bool


class Eviction:
    """Keeps a cache directory within `limit_bytes` (None: within the disk) and knows what is in it."""

    def __init__(self, directory: Path, *, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self._directory = directory
        self._artifacts = directory / "artifacts"
        self._partial = directory / "partial"

    def artifacts(self) -> list[CachedArtifact]:
        """What is cached, least recently used first."""
        with translated("list", self._artifacts):
            found = [self._look_at(path) for path in self._artifacts.glob("*") if path.is_dir()]
        return sorted(found, key=lambda artifact: artifact.used_at)

    def used_bytes(self) -> int:
        """Bytes of all that is cached or being fetched; a fetch counts with its final size from its start."""
        with translated("measure", self._directory):
            return _apparent_bytes(self._artifacts) + _apparent_bytes(self._partial)

    @contextmanager
    def room_for(self, manifest: Manifest, work: Path) -> Iterator[None]:
        """Evict until an artifact fits, and hold out other fetches until the block has reserved its place.

        Raises ArtifactError when the rest is pinned, or the disk is full of other things.
        """
        with exclusive(self._directory / "eviction.lock"):
            work.mkdir(parents=True, exist_ok=True)
            needed = manifest.size_bytes - _apparent_bytes(work)
            for artifact in self.artifacts():
                if self._lacks(needed) <= 0:
                    break
                self.evict(artifact)
            if self._lacks(needed) > 0:
                raise self._no_room(manifest, needed)
            yield

    def collect(self, limit_bytes: int | None) -> list[CachedArtifact]:
        """Remove the leavings of killed processes, then evict down to a limit; what was evicted."""
        evicted: list[CachedArtifact] = []
        self._directory.mkdir(parents=True, exist_ok=True)
        with translated("clean", self._directory), exclusive(self._directory / "eviction.lock"):
            self._remove_leavings()
            for artifact in self.artifacts():
                if limit_bytes is None or self.used_bytes() <= limit_bytes:
                    break
                if self.evict(artifact):
                    evicted.append(artifact)
        return evicted

    def evict(self, artifact: CachedArtifact) -> bool:
        """Delete an artifact; False when a process has it pinned. Raises ArtifactError."""
        with translated("evict", artifact.directory), unpinned(self._pin(artifact.hex)) as free:
            if not free:
                return False
            # Renamed first, so that nobody finds half of it.
            doomed = self._partial / f"{artifact.hex}.evicted.{os.getpid()}"
            self._partial.mkdir(parents=True, exist_ok=True)
            artifact.directory.rename(doomed)
            shutil.rmtree(doomed)
            return True

    def _look_at(self, directory: Path) -> CachedArtifact:
        pin = self._pin(directory.name)
        used = pin if pin.exists() else directory
        return CachedArtifact(
            hex=directory.name,
            directory=directory,
            size_bytes=_apparent_bytes(directory),
            used_at=used.stat().st_mtime,
            pinned=is_pinned(pin),
        )

    def _lacks(self, needed: int) -> int:
        """Bytes that must go before `needed` more fit into the limit and on the disk."""
        # What is reserved by other fetches is not on the disk yet.
        reserved = _apparent_bytes(self._partial) - _allocated_bytes(self._partial)
        disk = needed - (shutil.disk_usage(self._directory).free - max(reserved, 0))
        return disk if self.limit_bytes is None else max(disk, self.used_bytes() + needed - self.limit_bytes)

    def _remove_leavings(self) -> None:
        for path in self._partial.glob("*"):
            name = path.name.partition(".")[0]
            lock = self._partial / f"{name}.lock"
            if path == lock or is_pinned(lock):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _pin(self, hex_name: str) -> Path:
        return self._directory / "pins" / hex_name

    def _no_room(self, manifest: Manifest, needed: int) -> ArtifactError:
        pinned = [artifact.hex[:12] for artifact in self.artifacts() if artifact.pinned]
        limit = "" if self.limit_bytes is None else f", its limit is {self.limit_bytes}"
        return ArtifactError(
            f"{str(manifest.ref)!r} needs {needed} more bytes in the cache {str(self._directory)!r}, which uses "
            f"{self.used_bytes()} on a disk with {shutil.disk_usage(self._directory).free} free{limit}; in use by "
            f"processes and not to be evicted: {', '.join(pinned) or 'nothing'}. Free some space there, raise the "
            "limit or choose another cache directory"
        )


def _apparent_bytes(directory: Path) -> int:
    return sum(status.st_size for status in _statuses(directory))


def _allocated_bytes(directory: Path) -> int:
    return sum(status.st_blocks * 512 for status in _statuses(directory))


def _statuses(directory: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                yield os.lstat(os.path.join(folder, name))  # noqa: PTH118 - a path object a file would be slow
            except FileNotFoundError:
                # Another process finished with it meanwhile.
                continue
