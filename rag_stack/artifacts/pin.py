"""A process's hold on a cached artifact: a shared lock that the kernel drops when the process ends, however it ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rag_stack.artifacts.local_file import open_locked, translated, unlock

_NOT_WRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


class Pin:
    """Held until `release`, or until the process and all that it forked meanwhile have ended.

    A number and no file object, so that nothing is let go because nobody remembers the pin.
    """

    def __init__(self, descriptor: int | None, *, used: bool) -> None:
        self._descriptor = descriptor
        self._used = used

    @classmethod
    def take(cls, path: Path, *, used: bool = True) -> "Pin":
        """Pin by a lock file, whose time is that of the last use. Waits while the artifact is being evicted.

        Who cannot write the cache is held back by nothing but a pin that is there already; without one the pin is of
        no effect.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_locked(path, shared=True, writable=False)
        except OSError as exc:
            if exc.errno in _NOT_WRITABLE:
                return cls(None, used=used)
            with translated("pin", path):
                raise
        pin = cls(descriptor, used=used)
        pin._touch()
        return pin

    def release(self) -> None:
        """Let go; again does nothing."""
        self._touch()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            unlock(descriptor)

    def _touch(self) -> None:
        if not self._used or self._descriptor is None:
            return
        try:
            os.utime(self._descriptor)
        except OSError as exc:
            # Another user's cache: its own users' times decide what leaves it.
            if exc.errno not in _NOT_WRITABLE:
                raise


@contextmanager
def unpinned(path: Path) -> Iterator[bool]:
    """Whether no process holds the pin; while the block runs none can take it, and it goes when the block ends well.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_locked(path, blocking=False)
    if descriptor is None:
        yield False
        return
    try:
        yield True
        path.unlink(missing_ok=True)
    finally:
        unlock(descriptor)


def is_pinned(path: Path) -> bool:
    """Whether some process holds the pin now. Raises OSError.

    Looking takes the lock for a moment, in which `unpinned` takes the artifact for pinned: look under its lock.
    """
    if not path.exists():
        return False
    descriptor = open_locked(path, blocking=False, writable=os.access(path, os.W_OK, effective_ids=True))
    if descriptor is None:
        return True
    unlock(descriptor)
    return False
