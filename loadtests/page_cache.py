"""Takes files out of the page cache, and makes sure of it."""

import os
from collections.abc import Iterable
from pathlib import Path

from rag_stack.artifacts.residency import resident_bytes


class StillResidentError(Exception):
    """A file is still in memory: it is on tmpfs, or a process maps it."""


def drop(paths: Iterable[Path]) -> None:
    """Write files back and drop their pages; what mincore then says decides. Raises StillResidentError."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if left := resident_bytes(path):
            raise StillResidentError(
                f"{left / 1e6:.1f} MB of {path.name} stay in the page cache: end what maps it, and keep it on a disk"
            )
