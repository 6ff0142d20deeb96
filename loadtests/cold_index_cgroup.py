"""A memory cgroup of our own, v1 or v2, below that of this process and never outside what bounds it."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05
_GONE_WITHIN_S = 5.0


class NoMemoryGroupError(Exception):
    """We may not make a memory cgroup, or the kernel has none."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A cgroup with a limit on its memory, page cache included."""

    folder: Path
    limit_bytes: int

    def add(self, pid: int) -> None:
        """What the process touches from now on counts. Meant for a child between fork and exec."""
        (self.folder / "cgroup.procs").write_text(str(pid), encoding="ascii")


@contextmanager
def memory_group(*, limit_bytes: int) -> Iterator[MemoryGroup]:
    """A group for as long as the block runs; its processes must have ended by then. Raises NoMemoryGroupError."""
    folder = _parent() / f"rag-stack-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as exc:
        raise NoMemoryGroupError(f"cannot make a memory cgroup: {exc.strerror}") from exc
    try:
        yield MemoryGroup(folder, _limit(folder, limit_bytes))
    finally:
        _remove(folder)


def _limit(folder: Path, limit_bytes: int) -> int:
    """Set the limit, and say what the kernel made of it: whole pages."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (folder / name).is_file():
            try:
                (folder / name).write_text(str(limit_bytes), encoding="ascii")
                with contextlib.suppress(OSError):
                    # Swap would hide what does not fit; not every kernel has it.
                    (folder / "memory.swap.max").write_text("0", encoding="ascii")
                return int((folder / name).read_text(encoding="ascii"))
            except OSError as exc:
                raise NoMemoryGroupError(f"cannot limit a memory cgroup: {exc.strerror}") from exc
    raise NoMemoryGroupError("a new cgroup has no memory controller here")


def _parent() -> Path:
    """The folder in which to make ours: this process's own group.

    In v2 a group that holds processes hands no controller down, so there ours is made beside it.
    """
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    for place, kind in mounts:
        point, options = Path(place.split()[4]), kind.split()
        for _, controllers, path in own:
            group = point / path.strip("/")
            if options[0] == "cgroup" and "memory" in controllers.split(",") and "memory" in options[2].split(","):
                return group
            if options[0] == "cgroup2" and not controllers and (group / "memory.max").is_file():
                return group if _hands_down(group) else group.parent
    raise NoMemoryGroupError("there is no memory cgroup hierarchy here")


def _hands_down(group: Path) -> bool:
    return "memory" in (group / "cgroup.subtree_control").read_text(encoding="ascii").split()


def _remove(folder: Path) -> None:
    """Remove the group; the kernel lets it go a moment after its last process."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
