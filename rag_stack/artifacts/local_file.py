"""Local files that survive bad days: written whole or not at all, by one process at a time."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from rag_stack.errors import ArtifactError

_ADVICE = {
    errno.ENOSPC: "free some space there or choose another place",
    errno.EDQUOT: "raise the quota or choose another place",
    errno.EFBIG: "raise the limit on file sizes or choose another place",
    errno.EACCES: "give this user access to it or choose another place",
    errno.EPERM: "give this user access to it or choose another place",
    errno.EROFS: "mount it writable or choose another place",
}

_FOLDER_TRIES: Final = 100


@contextmanager
def translated(action: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError inside the block into an ArtifactError that says what failed, where, and what to do."""
    try:
        yield
    except OSError as exc:
        advice = _ADVICE.get(exc.errno or 0, "check the path and try again")
        raise ArtifactError(f"cannot {action} {str(path)!r}: {exc.strerror or exc}; {advice}") from exc


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when the block ends, whole and on disk, or not at all.

    Writers of one path take turns; what a killed one left is overwritten by the next. Raises OSError.
    """
    created = [folder for folder in path.parents if not folder.exists()]
    partial = path.with_name(f".{path.name}.partial")
    with _locked(partial) as file:
        try:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        for folder in (path.parent, *(folder.parent for folder in created)):
            sync_directory(folder)


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever has it. It ends with the process, however that ends.

    Raises BlockingIOError when another process has it, and it is not to be waited for.
    """
    with _locked(path, wait=wait):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def open_locked(path: Path, *, shared: bool = False, blocking: bool = True, writable: bool = True) -> int | None:
    """Open and lock a file, which is created if need be; `unlock` it. The lock ends with the process.

    None when it is not blocking and another process holds a lock that excludes this one. Raises OSError.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB)
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CREAT | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            # The holder before us may have renamed or removed the file: then our lock is on nothing.
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def unlock(descriptor: int) -> None:
    """Drop a lock. Explicitly, because a forked child may still hold a copy of the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[BinaryIO]:
    descriptor = _open_in_folder(path, wait=wait)
    if descriptor is None:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process has the lock", str(path))
    with os.fdopen(descriptor, "r+b", closefd=False) as file:
        try:
            yield file
        finally:
            file.close()
            unlock(descriptor)


def _open_in_folder(path: Path, *, wait: bool) -> int | None:
    """Lock a file in a folder that is made if need be, although who deletes what is in it may remove it meanwhile."""
    for left in reversed(range(_FOLDER_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return open_locked(path, blocking=wait)
        except (FileNotFoundError, FileExistsError):
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
