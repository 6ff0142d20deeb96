"""The processes of one cluster on this machine, by what they are, and how to kill one: by its id, and only its own.

A process belongs to the cluster when it descends from the root, or once did: HAProxy, say, whose manager was killed.
Each is held with its time of birth, so that an id that the system has given away again is never taken for it.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from rag_stack.artifacts.pin import is_pinned

_GONE: Final = (psutil.NoSuchProcess, psutil.AccessDenied)
# Titles that Ray gives its workers, and names of binaries; the first that fits. A title's tail is what runs now.
_ROLES: Final = (
    (re.compile(r"^ray::(?:SERVE_REPLICA::|ServeReplica:)engine[#:]LLMRouter"), "router"),
    (re.compile(r"^ray::(?:SERVE_REPLICA::|ServeReplica:)engine[#:]"), "replica"),
    (re.compile(r"^ray::(?:SERVE_REPLICA::|ServeReplica:)vector_stores[#:]"), "search"),
    (re.compile(r"^ray::(?:SERVE_REPLICA::|ServeReplica:)(\w+)[#:]"), ""),
    (re.compile(r"^ray::ServeController"), "controller"),
    (re.compile(r"^ray::HAProxyManager"), "manager"),
    (re.compile(r"^ray::ProxyActor"), "proxy"),
    (re.compile(r"^ray::NodeAgent"), "agent"),
    (re.compile(r"^ray::LedgerActor"), "ledger"),
    (re.compile(r"^ray::Fetcher"), "fetcher"),
    (re.compile(r"^ray::IDLE"), "idle"),
    (re.compile(r"(^|/)haproxy "), "haproxy"),
    (re.compile(r"(^|/)raylet "), "raylet"),
    (re.compile(r"(^|/)gcs_server "), "gcs"),
)


class NotOursError(Exception):
    """A process that is no member of this cluster was to be killed."""


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A process: `born_s` tells it from a later one of the same id; `parent` is who started it."""

    role: str
    pid: int
    born_s: float = field(compare=False, default=0.0)
    parent: int = field(compare=False, default=0)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a role's processes hold together; `memory_bytes` is anonymous memory alone, neither files nor shared."""

    processes: int
    memory_bytes: int
    descriptors: int


class Processes:
    """The members of the cluster whose driver is `root`; this process, unless told otherwise."""

    def __init__(self, root: int | None = None) -> None:
        self._root = psutil.Process(root or os.getpid())
        self._known: dict[int, psutil.Process] = {}

    def members(self, role: str | None = None) -> list[Member]:
        """Those that run now, of one role or of all, oldest first."""
        found = [_member(process) for process in self._running()]
        named = [member for member in found if member is not None and role in (None, member.role)]
        return sorted(named, key=lambda member: (member.born_s, member.pid))

    def kill(self, member: Member) -> None:
        """SIGKILL. One that has ended already is no error. Raises NotOursError for what is no member."""
        process = self._known.get(member.pid)
        if process is None or process.create_time() != member.born_s:
            raise NotOursError(f"process {member.pid} ({member.role}) is no member of this cluster")
        with suppress(*_GONE):
            process.kill()  # psutil compares the time of birth once more

    def below(self, member: Member) -> list[Member]:
        """A member and what descends from it: of a raylet, the whole node."""
        everyone = self.members()
        found, wanted = [], {member.pid}
        for each in everyone:
            if each.pid in wanted or each.parent in wanted:
                found.append(each)
                wanted.add(each.pid)
        return found

    def footprints(self) -> Mapping[str, Footprint]:
        """By role, what the processes hold now."""
        counts: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        descriptors: Counter[str] = Counter()
        for member in self.members():
            with suppress(*_GONE, OSError):
                process = self._known[member.pid]
                held = _anonymous_bytes(member.pid), process.num_fds()
                counts[member.role] += 1
                memory[member.role] += held[0]
                descriptors[member.role] += held[1]
        return {role: Footprint(counts[role], memory[role], descriptors[role]) for role in sorted(counts)}

    def _running(self) -> Iterator[psutil.Process]:
        roots = [self._root, *self._known.values()]
        for root in roots:
            with suppress(*_GONE):
                self._known.update({process.pid: process for process in root.children(recursive=True)})
        self._known = {pid: process for pid, process in self._known.items() if _runs(process)}
        yield from list(self._known.values())


def role_of(title: str) -> str:
    """What a process is, by its command line; `other` for what is none of the cluster's parts."""
    for pattern, role in _ROLES:
        if match := pattern.search(title):
            return role or match.group(1)
    return "other"


def shared_memory(directory: Path = Path("/dev/shm")) -> frozenset[str]:
    """The names of what lies in shared memory now."""
    with suppress(OSError):
        return frozenset(each.name for each in directory.iterdir())
    return frozenset()


def pinned_in(caches: Iterable[Path], *, served: Collection[str]) -> frozenset[str]:
    """What some process holds in a node's cache and is not `served`, as `cache/digest`.

    The kernel lets go what a dead one held.
    """
    pins = [pin for cache in caches for pin in (cache / "pins").glob("*") if pin.name not in served]
    return frozenset(f"{pin.parents[1].name}/{pin.name[:12]}" for pin in pins if is_pinned(pin))


def _anonymous_bytes(pid: int) -> int:
    """What no file and no shared memory stands behind: mapped weights and Ray's object store come and go with use."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


def _member(process: psutil.Process) -> Member | None:
    try:
        title = " ".join(process.cmdline()).strip()
        return Member(role_of(title + " "), process.pid, process.create_time(), process.ppid())
    except _GONE:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except _GONE:
        return False
