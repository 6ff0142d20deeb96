"""A server started as a subprocess, with the CPU time of everything that it starts, until all of it is stopped."""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

# Every process below inherits it, so that one whose parent has ended is found as well.
MARK = "RAG_STACK_LOADTEST_TREE"
_POLL_S = 0.1
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


class ProcessTree:
    """One subprocess and all its descendants.

    A member is a descendant of the subprocess, or a process whose environment carries this tree's mark, or a
    descendant of one. Ray's daemons are both: the driver starts the GCS and the raylet, the raylet starts the workers,
    and a worker starts HAProxy and vLLM's processes.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self._mark = uuid.uuid4().hex
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            # A session of its own: a Ctrl-C on the terminal reaches the load test, which then stops this tree in order.
            self._root = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: self._mark},
                start_new_session=True,
            )
        self._members: dict[int, psutil.Process] = {}

    @property
    def pid(self) -> int:
        """The subprocess's id."""
        return self._root.pid

    def exit_status(self) -> int | None:
        """The subprocess's exit status, None while it runs."""
        return self._root.poll()

    def cpu_seconds(self) -> float:
        """User and system time of all members so far, with what their ended children used."""
        self.members()
        # An ended child that its parent has not reaped yet still has its time to itself.
        return sum(map(_cpu_seconds, self._members.values()))

    def members(self) -> list[psutil.Process]:
        """The processes of this tree that run now. Once a member, always a member: titles may overwrite the mark."""
        known = {pid: process for pid, process in self._members.items() if process.is_running()}
        roots = [p for p in psutil.process_iter() if p.pid == self.pid or p.pid in known or self._is_marked(p)]
        self._members = {p.pid: p for root in roots for p in (root, *_descendants(root))} | known
        return [p for p in self._members.values() if _runs(p)]

    def tail(self, *, lines: int = 15) -> str:
        """The end of what the tree printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def stop(self, *, timeout_s: float = 60.0, grace_s: float = 15.0) -> None:
        """Ask the subprocess to end, then end what `grace_s` later is left of the tree. Blocking."""
        self.members()
        if self._root.poll() is None:
            self._root.send_signal(signal.SIGTERM)
        try:
            self._root.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._root.kill()
            self._root.wait()
        # Daemons end a moment after their driver; those that do not would take CPU time from the next arm.
        if not self._ended(within_s=grace_s):
            for process in self.members():
                _kill(process)
            self._ended(within_s=15.0)

    def _ended(self, *, within_s: float) -> bool:
        """Whether all members end in time. An orphan that nobody reaps has ended too, which psutil's wait denies."""
        deadline = time.monotonic() + within_s
        while self.members():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(MARK) == self._mark)
        except (*_GONE, OSError):
            return False


def inherited_environment() -> dict[str, str]:
    """The environment of this process without what would change whom the server lets in or which Ray it joins."""
    return {name: value for name, value in os.environ.items() if name not in ("RAG_STACK_API_KEYS", "RAY_ADDRESS")}


def cpu_seconds_of(process: psutil.Process) -> float:
    """User and system time of a process and all below it, with what their ended children used."""
    return sum(map(_cpu_seconds, (process, *_descendants(process))))


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except _GONE:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except _GONE:
        return False


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except _GONE:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except _GONE:
        return
