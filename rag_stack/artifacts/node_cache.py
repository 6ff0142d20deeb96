"""The directory where a node keeps verified artifacts, shared by all processes on it.

<cache>/artifacts/<hex>/   whole and verified, its files read-only; manifest.json is the artifact's own
<cache>/partial/<hex>/     what a fetch has so far; a later fetch goes on from there
<cache>/partial/<hex>.lock held by the one process that fetches
<cache>/pins/<hex>         locked by every process that uses the artifact; its time is that of the last use
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rag_stack.artifacts.chunk import matching
from rag_stack.artifacts.eviction import CachedArtifact, Collected, Eviction
from rag_stack.artifacts.local_file import exclusive, sync_directory, translated
from rag_stack.artifacts.manifest import MANIFEST_NAME, Manifest
from rag_stack.artifacts.partial import Partial, have_path
from rag_stack.artifacts.pin import Pin
from rag_stack.errors import ArtifactCorruptError, ArtifactOutdatedError
from rag_stack.metrics import Recorder

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# In an artifact's directory until its bytes are on the disk, and not only in the page cache of this boot.
_UNSYNCED: Final = ".unsynced"


class NodeCache:
    """Verified artifacts on local disk, by the digest of their manifest.

    `limit_bytes` bounds what is cached and being fetched together: the least recently used artifacts make room.
    """

    def __init__(self, directory: Path, *, limit_bytes: int | None = None, recorder: Recorder | None = None) -> None:
        self.directory = directory.absolute()
        self.eviction = Eviction(self.directory, limit_bytes=limit_bytes, recorder=recorder)
        self._artifacts = self.directory / "artifacts"
        self._partial = self.directory / "partial"
        self._syncing: list[threading.Thread] = []

    def pin(self, manifest: Manifest, *, used: bool = True) -> Pin:
        """Keep an artifact, whether it is here already or not, from being evicted while the pin is held."""
        return Pin.take(self.directory / "pins" / manifest.hex, used=used)

    def find(self, manifest: Manifest) -> Path | None:
        """The directory of a cached artifact, or None. Looks at sizes; digests were checked when it came in.

        None, too, if the machine restarted before its bytes were on the disk: then `insert` checks them again. Raises
        ArtifactCorruptError when a file is not as it was.
        """
        directory = self._artifacts / manifest.hex
        with translated("read the cached artifact", directory):
            if not directory.is_dir():
                return None
            if _is_doubtful(directory):
                if os.access(directory, os.W_OK, effective_ids=True):
                    return None
                # Nobody can mend it or say that it is right, so each process looks for itself.
                self.verify(manifest)
            _check_sizes(manifest, directory)
        return directory

    def manifest(self, digest: str) -> Manifest | None:
        """The manifest with a digest, if its artifact is cached. One that is damaged counts as absent."""
        try:
            manifest = read_manifest(self._artifacts / digest.removeprefix("sha256:"))
        except (OSError, ArtifactCorruptError):
            return None
        return manifest if manifest.digest == digest else None

    def insert(self, manifest: Manifest, fill: Callable[[Partial], None]) -> Path:
        """Have the missing chunks written by `fill(partial)`, and make the whole visible at once.

        Of several processes one fetches and the others wait for it. Chunks that a killed fetch had written are not
        fetched again. Blocking. Raises ArtifactError when there is no room, and whatever `fill` raises.
        """
        work = self._partial / manifest.hex
        with ExitStack() as held:
            with translated("lock", work):
                held.enter_context(exclusive(self._partial / f"{manifest.hex}.lock"))
            directory = self.find(manifest) or self._settled(manifest, work)
            if directory is not None:
                return directory
            with translated("write the cached artifact", work):
                with self.eviction.room_for(manifest, work):
                    partial = Partial(work, manifest)
                try:
                    fill(partial)
                finally:
                    partial.close()
                return self._reveal(manifest, work)

    def verify(self, manifest: Manifest) -> None:
        """Read a cached artifact and check all digests. Raises ArtifactCorruptError that names all that is wrong."""
        directory = self._artifacts / manifest.hex
        with translated("read the cached artifact", directory):
            chunks = manifest.chunks()
            right = matching(directory, chunks)
            wrong = {chunk.path for chunk in chunks if chunk.index not in right}
            wrong |= {entry.path for entry in manifest.files if _size_bytes(directory / entry.path) != entry.size_bytes}
            foreign = _files(directory) - {entry.path for entry in manifest.files} - {MANIFEST_NAME, _UNSYNCED}
        found = [f"{path!r} is not what was verified when it came in" for path in sorted(wrong)]
        found += [f"{path!r} does not belong to it" for path in sorted(foreign)]
        if found:
            raise _damaged(manifest, directory, "; ".join(found))

    def collect(self, limit_bytes: int | None) -> Collected:
        """Remove what killed processes left and what cannot be read, then evict down to a limit (None: nothing)."""
        return self.eviction.collect(limit_bytes, useless=_is_unreadable)

    def wait_synced(self) -> None:
        """Wait until what was brought in since the machine started is on the disk."""
        for thread in self._syncing:
            thread.join()
        for mark in self._artifacts.glob(f"*/{_UNSYNCED}"):
            # Left by a process that was killed before it was done.
            if not _is_doubtful(mark.parent):
                self._sync(mark.parent)

    def _settled(self, manifest: Manifest, work: Path) -> Path | None:
        """What was not on the disk when the machine went down: verified again, or taken back to be mended."""
        directory = self._artifacts / manifest.hex
        with translated("verify the cached artifact", directory):
            if not directory.is_dir():
                return None
            try:
                self.verify(manifest)
            except ArtifactCorruptError as exc:
                logging.getLogger(__name__).warning("fetching what the machine lost when it went down: %s", exc)
                if work.exists():
                    shutil.rmtree(work)
                work.parent.mkdir(parents=True, exist_ok=True)
                directory.rename(work)
                for path in _files(work) - {entry.path for entry in manifest.files}:
                    (work / path).unlink()
                return None
            self._sync(directory)
            return directory

    def _reveal(self, manifest: Manifest, work: Path) -> Path:
        for entry in manifest.files:
            # Only files: directories stay writable, so that an artifact can be deleted by its owner.
            (work / entry.path).chmod(0o444)
        (work / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        (work / _UNSYNCED).write_text(_boot_id(), encoding="ascii")
        directory = self._artifacts / manifest.hex
        self._artifacts.mkdir(parents=True, exist_ok=True)
        work.rename(directory)
        have_path(work).unlink(missing_ok=True)
        # Beside the reader: waiting for the disk here would make a fetch as slow as the disk writes.
        thread = threading.Thread(target=self._sync, args=(directory,), name="artifact-sync")
        self._syncing = [*(each for each in self._syncing if each.is_alive()), thread]
        thread.start()
        return directory

    def _sync(self, directory: Path) -> None:
        """Bring an artifact to the disk. When that fails it stays in doubt, and the next boot verifies it."""
        try:
            for path in directory.rglob("*"):
                if path.is_dir():
                    sync_directory(path)
                else:
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            sync_directory(directory)
            sync_directory(directory.parent)
            (directory / _UNSYNCED).unlink(missing_ok=True)
        except FileNotFoundError:
            # Evicted meanwhile.
            return
        except OSError as exc:
            logging.getLogger(__name__).warning("cannot bring %s to the disk: %s", directory, exc)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a cached artifact, from its directory. Raises OSError or ArtifactCorruptError."""
    try:
        manifest = Manifest.from_bytes((directory / MANIFEST_NAME).read_bytes())
    except ArtifactOutdatedError as exc:
        raise ArtifactCorruptError(f"{str(directory / MANIFEST_NAME)!r}: {exc}") from exc
    if manifest.hex != directory.name:
        raise ArtifactCorruptError(
            f"{str(directory / MANIFEST_NAME)!r} has digest {manifest.hex}, expected that of its folder; "
            f"delete the folder {str(directory)!r} and start again"
        )
    return manifest


def _is_unreadable(artifact: CachedArtifact) -> bool:
    try:
        read_manifest(artifact.directory)
    except (OSError, ArtifactCorruptError):
        return True
    return False


def _check_sizes(manifest: Manifest, directory: Path) -> None:
    for entry in manifest.files:
        size = _size_bytes(directory / entry.path)
        if size != entry.size_bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise _damaged(manifest, directory, f"{entry.path!r} {found}, expected {entry.size_bytes} bytes")


def _size_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _files(directory: Path) -> set[str]:
    """The paths of all files below a directory, relative to it."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def _damaged(manifest: Manifest, directory: Path, what: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"the cached copy of {str(manifest.ref)!r} is damaged: {what}; delete the folder {str(directory)!r} and start "
        "again"
    )


def _is_doubtful(directory: Path) -> bool:
    """Whether the machine went down before the artifact's bytes were on the disk."""
    try:
        written = (directory / _UNSYNCED).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return False
    return written != _boot_id() or not written


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        # Not Linux: then no boot is known, and every start verifies until the bytes are on the disk.
        return ""
