"""Who leaves the node cache when it is full: the least recently used that no live process has pinned."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rag_stack.artifacts.local_file import exclusive, translated
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.pin import is_pinned, unpinned
from rag_stack.errors import ArtifactError
from rag_stack.metrics import CACHE_EVICTED_BYTES, CACHE_EVICTIONS, Recorder

_NOT_WRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_EVICTED: Final = ".evicted"


@dataclass(frozen=True, slots=True)
class CachedArtifact:
    """What lies in the cache under one digest. `used_at` is Unix time."""

    hex: str
    directory: Path
    size_bytes: int
    used_at: float
    pinned: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed: whole artifacts, and the names and bytes of what killed processes had left."""

    evicted: tuple[CachedArtifact, ...]
    leavings: tuple[str, ...]
    leavings_bytes: int


class Eviction:
    """Keeps a cache directory within `limit_bytes` (None: within the disk) and knows what is in it."""

    def __init__(self, directory: Path, *, limit_bytes: int | None, recorder: Recorder | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._recorder = recorder
        self._directory = directory
        self._artifacts = directory / "artifacts"
        self._partial = directory / "partial"
        self._pins = directory / "pins"

    def artifacts(self) -> list[CachedArtifact]:
        """What is cached, least recently used first."""
        with ExitStack() as held, translated("list", self._artifacts):
            if self._directory.is_dir():
                try:
                    held.enter_context(self._alone())
                except OSError as exc:
                    if exc.errno not in _NOT_WRITABLE:
                        raise
            return self._list()

    def used_bytes(self) -> int:
        """Bytes of all that is cached or being fetched; a fetch counts with its final size from its start."""
        with translated("measure", self._directory):
            return _apparent_bytes(self._artifacts) + _apparent_bytes(self._partial)

    @contextmanager
    def room_for(self, manifest: Manifest, work: Path) -> Iterator[None]:
        """Evict until an artifact fits, and hold out other fetches until the block has reserved its place.

        Raises ArtifactError, and then nothing was evicted for it, when the rest is pinned or the disk is full of
        other things; OSError when the directory cannot be written.
        """
        with self._alone():
            needed = manifest.size_bytes - _apparent_bytes(work)
            if self._lacks(needed) > 0:
                self._make_room(manifest, needed)
            work.mkdir(parents=True, exist_ok=True)
            yield

    def collect(self, limit_bytes: int | None, *, useless: Callable[[CachedArtifact], bool]) -> Collected:
        """Remove the leavings of killed processes and what is useless, then evict down to a limit."""
        if not self._directory.exists():
            return Collected((), (), 0)
        with translated("clean", self._directory), self._alone():
            leavings, size_bytes = self._remove_leavings()
            artifacts = self._list()
            evicted = [artifact for artifact in artifacts if useless(artifact) and self._evict(artifact)]
            for artifact in artifacts:
                if limit_bytes is None or self.used_bytes() <= limit_bytes:
                    break
                if artifact not in evicted and self._evict(artifact):
                    evicted.append(artifact)
            self._remove_idle_pins()
        return Collected(tuple(evicted), leavings, size_bytes)

    def _alone(self) -> AbstractContextManager[None]:
        """Of all processes only one measures, reserves and evicts."""
        return exclusive(self._directory / "eviction.lock")

    def _list(self) -> list[CachedArtifact]:
        found: list[CachedArtifact] = []
        for directory in self._artifacts.glob("*"):
            # Removed by hand meanwhile, or something else than a directory: not ours.
            with suppress(FileNotFoundError):
                if directory.is_dir():
                    found.append(self._look_at(directory))
        return sorted(found, key=lambda artifact: artifact.used_at)

    def _look_at(self, directory: Path) -> CachedArtifact:
        pin = self._pins / directory.name
        used = pin if pin.exists() else directory
        return CachedArtifact(
            hex=directory.name,
            directory=directory,
            size_bytes=_apparent_bytes(directory),
            used_at=used.stat().st_mtime,
            pinned=is_pinned(pin),
        )

    def _make_room(self, manifest: Manifest, needed: int) -> None:
        self._remove_leavings()
        idle = [artifact for artifact in self._list() if not artifact.pinned]
        # Not one is evicted for what would not fit anyway.
        if self._lacks(needed) <= sum(artifact.size_bytes for artifact in idle):
            for artifact in idle:
                if self._lacks(needed) <= 0:
                    break
                self._evict(artifact)
        if self._lacks(needed) > 0:
            raise self._no_room(manifest, needed)

    def _evict(self, artifact: CachedArtifact) -> bool:
        """Delete an artifact; False when a process has it pinned. Raises OSError."""
        doomed = self._partial / f"{artifact.hex}{_EVICTED}"
        with unpinned(self._pins / artifact.hex) as free:
            if not free:
                return False
            # Renamed first, so that nobody finds half of it.
            self._partial.mkdir(parents=True, exist_ok=True)
            _remove(doomed)
            with suppress(FileNotFoundError):
                artifact.directory.rename(doomed)
        _remove(doomed)
        if self._recorder is not None:
            self._recorder.record(CACHE_EVICTIONS, 1)
            self._recorder.record(CACHE_EVICTED_BYTES, artifact.size_bytes)
        return True

    def _lacks(self, needed: int) -> int:
        """Bytes that must go before `needed` more fit into the limit and on the disk."""
        # What is reserved by other fetches is not on the disk yet.
        reserved = _apparent_bytes(self._partial) - _allocated_bytes(self._partial)
        disk = needed - (shutil.disk_usage(self._directory).free - max(reserved, 0))
        return disk if self.limit_bytes is None else max(disk, self.used_bytes() + needed - self.limit_bytes)

    def _remove_leavings(self) -> tuple[tuple[str, ...], int]:
        """Remove what evictions and fetches left that were killed; their names, and the bytes on the disk."""
        before = _allocated_bytes(self._partial)
        removed: list[str] = []
        paths = sorted(self._partial.glob("*"))
        for name in sorted({path.name.partition(".")[0] for path in paths}):
            # A fetch, this process's own too, holds its lock; an eviction would hold ours.
            with unpinned(self._partial / f"{name}.lock") as free:
                for path in paths if free else []:
                    if path.name.partition(".")[0] == name:
                        _remove(path)
                        removed.append(path.name)
        return tuple(removed), max(before - _allocated_bytes(self._partial), 0)

    def _remove_idle_pins(self) -> None:
        for pin in self._pins.glob("*"):
            if not (self._artifacts / pin.name).exists():
                # It goes when the block ends, unless a process holds it that fetches the artifact.
                with unpinned(pin):
                    pass

    def _no_room(self, manifest: Manifest, needed: int) -> ArtifactError:
        pinned = [artifact.hex[:12] for artifact in self._list() if artifact.pinned]
        limit = "" if self.limit_bytes is None else f", its limit is {self.limit_bytes}"
        return ArtifactError(
            f"{str(manifest.ref)!r} needs {needed} more bytes in the cache {str(self._directory)!r}, which uses "
            f"{self.used_bytes()} on a disk with {shutil.disk_usage(self._directory).free} free{limit}; in use by "
            f"processes and not to be evicted: {', '.join(pinned) or 'nothing'}. Free some space there, raise the "
            "limit or choose another cache directory"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
