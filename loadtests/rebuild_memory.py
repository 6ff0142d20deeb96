"""The memory and CPU time of a build, for `loadtests.rebuild`: of all its processes, without the page cache."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.process_tree import ProcessTree

_EVERY_S = 0.5
_PARTS = ("Pss_Anon", "Pss_Shmem")


@dataclass(slots=True)
class MemoryWatch:
    """Samples a tree until told to stop. A page that several processes map counts once, in shares (PSS).

    `peak_bytes` is the most at one time, `peak_of` what each command then had, `cpu_s` the CPU seconds of all so far.
    """

    tree: ProcessTree
    memory: bool = True
    cpu_s: float = 0.0
    peak_bytes: int = 0
    peak_of: dict[str, int] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Sample until `end` is called."""
        while not self._ended.wait(_EVERY_S):
            self.cpu_s = max(self.cpu_s, self.tree.cpu_seconds())
            if not self.memory:
                continue
            found: dict[str, int] = {}
            for process in self.tree.members():
                name, size = _command(process.pid), _own_bytes(process.pid)
                found[name] = found.get(name, 0) + size
            if sum(found.values()) > self.peak_bytes:
                self.peak_bytes, self.peak_of = sum(found.values()), found

    def end(self) -> None:
        """Take no more samples."""
        self._ended.set()


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.partition(":")[0] in _PARTS)


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    first = words[0].decode(errors="replace")
    if first.startswith("ray::"):
        return first.split("(")[0].split("->")[0]
    rest = [word.decode(errors="replace") for word in words[1:] if word and not word.startswith(b"-")]
    name = first.rpartition("/")[2]
    return name if not name.startswith("python") or not rest else rest[0].rpartition("/")[2][:30]
