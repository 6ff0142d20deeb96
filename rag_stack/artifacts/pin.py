"""A process's hold on a cached artifact: a shared lock that the kernel drops when the process ends, however it ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rag_stack.artifacts.local_file import open_locked, translated


class Pin:
    """Held until `release`, or the end of the process. A child that is forked does not prolong it."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file

    @classmethod
    def take(cls, path: Path) -> "Pin":
        """Pin by a lock file, whose time becomes that of the last use. Waits while the artifact is being evicted.

        Where the cache cannot be written nothing can be evicted either, and the pin is of no effect.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open_locked(path, shared=True)
            os.utime(path)
        except OSError as exc:
            if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                return cls(None)
            with translated("pin", path):
                raise
        return cls(file)

    def release(self) -> None:
        """Let go; again does nothing."""
        file, self._file = self._file, None
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_UN)
            file.close()


@contextmanager
def unpinned(path: Path) -> Iterator[bool]:
    """Whether no process holds the pin; while the block runs none can take it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open_locked(path, blocking=False)
    try:
        yield file is not None
        if file is not None:
            path.unlink(missing_ok=True)
    finally:
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_UN)
            file.close()


def is_pinned(path: Path) -> bool:
    """Whether some process holds the pin now. Raises OSError."""
    if not path.exists():
        return False
    file = open_locked(path, blocking=False)
    if file is None:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()
    return False
