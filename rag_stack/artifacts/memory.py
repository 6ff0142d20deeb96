"""How much memory this process may take: what the machine has, and what each cgroup above the process allows."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Self

# cgroup v1 says "no limit" with the largest number of pages that fits in 63 bits.
_UNLIMITED: Final = 1 << 60


def available_bytes(*, root: Path = Path("/")) -> int:
    """The least that the machine and any memory cgroup (v1 or v2) still have to give, page cache that may go included.

    Page cache counts as free only while it is not in use: `inactive_file` of a cgroup, `MemAvailable` of the machine.
    `root` is where `proc` and the mount points are looked up. Raises OSError where there is no /proc/meminfo.
    """
    cgroups = [level.available_bytes() for group in _groups(root) for level in group.levels()]
    return max(0, min([_machine(root), *(free for free in cgroups if free is not None)]))


def limit_bytes(*, root: Path = Path("/")) -> int:
    """The least that the machine has and any memory cgroup allows, whoever has taken it. Raises OSError as above."""
    limits = [level.limit_bytes() for group in _groups(root) for level in group.levels()]
    total = 1024 * _fields((root / "proc/meminfo").read_text(encoding="ascii")).get("MemTotal", 0)
    return min([total, *(limit for limit in limits if limit is not None)])


def node_bytes(*, root: Path = Path("/")) -> int | None:
    """The smallest NUMA node that this process may take memory of; None where the system tells of none."""
    try:
        status = (root / "proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    listed = next((line.split(":")[1] for line in status.splitlines() if line.startswith("Mems_allowed_list:")), "")
    sizes = [_node_bytes(root / f"sys/devices/system/node/node{node}/meminfo") for node in _listed(listed)]
    # A node of CPUs alone has none.
    return min(filter(None, sizes), default=None)


def _node_bytes(path: Path) -> int:
    """Of lines like `Node 0 MemTotal: 97421888 kB`."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return 0
    return 1024 * _fields("\n".join(line.split(maxsplit=2)[-1] for line in text.splitlines())).get("MemTotal", 0)


def _listed(text: str) -> Iterator[int]:
    """The numbers of a list like `0-1,4`."""
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _machine(root: Path) -> int:
    fields = _fields((root / "proc/meminfo").read_text(encoding="ascii"))
    # Kernels before 3.14 have no MemAvailable.
    return 1024 * fields.get("MemAvailable", fields.get("MemFree", 0))


@dataclass(frozen=True, slots=True)
class _Level:
    """One cgroup's folder: what it may take, what it has taken, and how much of that is page cache out of use."""

    folder: Path
    limits: tuple[str, ...]
    usage: str
    inactive: str

    def limit_bytes(self) -> int | None:
        """What it may take; None where there is no limit, or the folder is not to be read."""
        limit = min((_number(self.folder / name) for name in self.limits), default=_UNLIMITED)
        return None if limit >= _UNLIMITED else limit

    def available_bytes(self) -> int | None:
        """What is left of the limit; None where there is none, or the folder is not to be read."""
        limit = self.limit_bytes()
        if limit is None:
            return None
        try:
            reclaimable = _fields((self.folder / "memory.stat").read_text(encoding="ascii")).get(self.inactive, 0)
        except OSError:
            reclaimable = 0
        used = _number(self.folder / self.usage)
        return None if used >= _UNLIMITED else max(0, limit - max(0, used - reclaimable))


@dataclass(frozen=True, slots=True)
class _Group:
    """The cgroup of this process in one hierarchy: `path` below `mount`."""

    mount: Path
    path: PurePosixPath
    unified: bool

    @classmethod
    def of(cls, mount: Path, *, root_of_mount: str, path: str, unified: bool) -> Self:
        """Of the mount's and the process's own view. In a container the mount may show a part of the hierarchy only."""
        pure = PurePosixPath(path)
        if pure.is_relative_to(root_of_mount):
            return cls(mount, pure.relative_to(root_of_mount), unified)
        return cls(mount, PurePosixPath(), unified)

    def levels(self) -> Iterator[_Level]:
        """The group itself, then all above it: the limit of each holds."""
        for pure in (self.path, *self.path.parents) if self.path.parts else (self.path,):
            folder = self.mount / pure
            if self.unified:
                yield _Level(folder, ("memory.max", "memory.high"), "memory.current", "inactive_file")
            else:
                yield _Level(folder, ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def _groups(root: Path) -> Iterator[_Group]:
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in own if line.count(":") > 1)}
    memory = next((path for names, path in paths.items() if "memory" in names.split(",")), None)
    for line in mounts:
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        mount = root / os.path.relpath(place[4], "/")
        if kind[0] == "cgroup2" and "" in paths:
            yield _Group.of(mount, root_of_mount=place[3], path=paths[""], unified=True)
        elif kind[0] == "cgroup" and memory is not None and "memory" in kind[2].split(","):
            yield _Group.of(mount, root_of_mount=place[3], path=memory, unified=False)


def _fields(text: str) -> dict[str, int]:
    """`name number`, as in memory.stat, and `name: number kB`, as in meminfo."""
    rows = (line.replace(":", " ").split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int:
    """A file of one number. "max", and a file that is not there, are no limit."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return _UNLIMITED
    return int(text) if text.isdigit() else _UNLIMITED
