"""The directory in which a build writes what it publishes; what a killed build has left there is removed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rag_stack.artifacts.local_file import open_locked, translated, unlock

_PREFIX: Final = "rag-stack-index-"
_LOCK: Final = ".lock"


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory below TMPDIR until the block ends. Raises ArtifactError when there is no place for one."""
    with translated("write", tempfile.gettempdir()):
        _remove_abandoned(Path(tempfile.gettempdir()))
        folder, lock = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        unlock(lock)


def _make() -> tuple[Path, int]:
    """A folder of ours, and its lock. Raises OSError."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Once the lock's file is there and not locked yet, another build may take the folder for abandoned.
        with suppress(FileNotFoundError):
            lock = open_locked(folder / _LOCK)
            if lock is not None:
                return folder, lock


def _remove_abandoned(parent: Path) -> None:
    """Those of processes that have ended: a lock ends with its process. Whoever has just made one has no lock yet."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # Another user's, or another process has removed it.
        with suppress(OSError):
            if not (folder / _LOCK).is_file() or folder.stat().st_uid != os.getuid():
                continue
            lock = open_locked(folder / _LOCK, blocking=False)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                unlock(lock)
