"""The directory where a node keeps verified artifacts, shared by all processes on it.

<cache>/artifacts/<hex>/   whole, verified; its files are read-only
<cache>/partial/<hex>/     what a fetch has so far; a later fetch goes on from there
<cache>/partial/<hex>.lock held by the one process that fetches
"""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rag_stack.artifacts.local_file import exclusive, file_digest, sync_directory, translated
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.errors import ArtifactCorruptError, ArtifactError


class NodeCache:
    """Verified artifacts on local disk, by the digest of their manifest."""

    def __init__(self, directory: Path) -> None:
        self._artifacts = directory.absolute() / "artifacts"
        self._partial = directory.absolute() / "partial"

    def find(self, manifest: Manifest) -> Path | None:
        """The directory of a cached artifact, or None. Looks at sizes; digests were checked when it came in.

        Raises ArtifactCorruptError when a file is not as it was then.
        """
        directory = self._artifacts / _hex(manifest)
        with translated("read the cached artifact", directory):
            if not directory.is_dir():
                return None
            for entry in manifest.files:
                path = directory / entry.path
                size = path.stat().st_size if path.is_file() else None
                if size != entry.size_bytes:
                    found = "is missing" if size is None else f"has {size} bytes"
                    raise ArtifactCorruptError(
                        f"cached file {str(path)!r} of {str(manifest.ref)!r} {found}, expected {entry.size_bytes} "
                        f"bytes; delete the folder {str(directory)!r} and start again"
                    )
        return directory

    def insert(self, manifest: Manifest, fetch: Callable[[FileEntry, Path], None]) -> Path:
        """Have each file written by `fetch(entry, path)`, verify it, and make the whole visible at once.

        Of several processes one fetches and the others wait for it. Files that a killed fetch had completed are not
        fetched again. Blocking. Raises ArtifactCorruptError when what was fetched is not what the manifest says.
        """
        work = self._partial / _hex(manifest)
        with ExitStack() as held:
            with translated("lock", work):
                held.enter_context(exclusive(self._partial / f"{_hex(manifest)}.lock"))
            directory = self.find(manifest)
            if directory is not None:
                return directory
            with translated("write the cached artifact", work):
                self._check_space(manifest, work)
                for entry in manifest.files:
                    _complete(manifest, entry, work / entry.path, fetch)
                return self._reveal(manifest, work)

    def _check_space(self, manifest: Manifest, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        needed, free = manifest.size_bytes - present, shutil.disk_usage(work).free
        if needed > free:
            raise ArtifactError(
                f"{str(manifest.ref)!r} needs {needed} more bytes in {str(self._partial.parent)!r}, which has {free} "
                "free; free some space there or choose another cache directory"
            )

    def _reveal(self, manifest: Manifest, work: Path) -> Path:
        for path in [work, *work.rglob("*")]:
            if path.is_dir():
                sync_directory(path)
        directory = self._artifacts / _hex(manifest)
        self._artifacts.mkdir(parents=True, exist_ok=True)
        work.rename(directory)
        sync_directory(self._artifacts)
        return directory


def _complete(manifest: Manifest, entry: FileEntry, path: Path, fetch: Callable[[FileEntry, Path], None]) -> None:
    """Fetch and verify one file, unless a fetch that was killed had it already."""
    if not (path.is_file() and file_digest(path) == entry.digest):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        fetch(entry, path)
        _verify(manifest, entry, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    # Only files: directories stay writable, so that an artifact can be deleted by its owner.
    path.chmod(0o444)


def _verify(manifest: Manifest, entry: FileEntry, path: Path) -> None:
    size, digest = path.stat().st_size, file_digest(path)
    if (size, digest) == (entry.size_bytes, entry.digest):
        return
    path.unlink()
    raise ArtifactCorruptError(
        f"file {entry.path!r} of {str(manifest.ref)!r} came with {size} bytes and digest {digest}, expected "
        f"{entry.size_bytes} bytes and {entry.digest}; its stored copy is damaged: delete the folder "
        f"{str(manifest.ref)!r} from the object store and publish it again"
    )


def _hex(manifest: Manifest) -> str:
    return manifest.digest.removeprefix("sha256:")
