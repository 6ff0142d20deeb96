"""A process that has imported what an engine's processes import, and forks them: milliseconds instead of seconds each.

`fork_start` starts it: `main` imports and then serves this user's `launcher`s, which connect
to the listening Unix socket that it inherits, until its standard input ends. It has one thread and no accelerator
open, or it refuses to serve: a copy of such a process is as good as a new one. What it refuses, the launcher starts as
a Python of its own.
"""

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rag_stack.generation.launcher import peer, receive, send

_READ_S: Final = 10.0
# Read by libraries when they are imported, or loaded: a process that wants another value must import them itself.
_FIXED: Final = (
    "VLLM_",
    "TORCH",
    "PYTORCH_",
    "HF_",
    "TRANSFORMERS_",
    "LD_",
    "PYTHONHASHSEED",
    "TRITON_",
    "CUDA_",
    "NCCL_",
)
# Of those, what is read when it is used.
_LATE: Final = frozenset({"VLLM_WORKER_MULTIPROC_METHOD", "VLLM_SSM_CONV_STATE_LAYOUT", "VLLM_CPU_OMP_THREADS_BIND"})
# How OpenMP binds its threads is settled when its library is loaded; these ways of saying it are not followed here.
_BINDING: Final = ("KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")


@dataclass(frozen=True, slots=True)
class Request:
    """A process that somebody wants: what a Python would be started with."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    fds: Sequence[int]
    launcher_pid: int
    launched_s: float


@dataclass(frozen=True, slots=True)
class Copy:
    """What a child is to become; `files` are copies of the launcher's, in the order of `request.fds`."""

    request: Request
    files: Sequence[int]
    connection: socket.socket
    imports_s: tuple[float, float]


class ForkServer:
    """Serves the launchers that connect to `listener`; those that do so while it imports, wait."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._children: dict[int, socket.socket] = {}
        self._imports_s = (0.0, 0.0)
        self._env = dict(os.environ)

    def preload(self, modules: Sequence[str]) -> None:
        """Import, and raise RuntimeError unless what came of it can be forked."""
        began_s = time.time()
        for name in modules:
            importlib.import_module(name)
        self._imports_s = (began_s, time.time())
        if (reason := unclean()) is not None:
            raise RuntimeError(reason)
        # What lives now lives for ever: collections in the children would copy all of it.
        gc.collect()
        gc.freeze()

    def run(self) -> Copy | None:
        """Serve until standard input ends; in each child, returns what that is to become."""
        ended, woken = os.pipe()
        os.set_blocking(ended, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Ctrl-C is for the ones that were forked, and for whoever holds the other end of the standard input.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            for source in (self._listener, ended, 0):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if ended in ready:
                    os.read(ended, 4096)
                    self._reap()
                if self._listener in ready and (forked := self._serve()) is not None:
                    signal.set_wakeup_fd(-1)
                    os.close(ended)
                    os.close(woken)
                    return forked
                if 0 in ready and not os.read(0, 4096):
                    return None

    def _serve(self) -> Copy | None:
        """Fork for one launcher; in the child, returns what that is to become."""
        connection, _ = self._listener.accept()
        files: list[int] = []
        try:
            connection.settimeout(_READ_S)
            if peer(connection).user != os.getuid():
                raise PermissionError("the launcher is another user's")
            message, files = receive(connection)
            request = _request(message, connection)
            if (reason := self._refusal(request, len(files))) is not None:
                send(connection, {"refused": reason})
                raise ValueError(reason)
            connection.settimeout(None)
            pid = os.fork()
            if pid == 0:
                self._leave()
                return Copy(request, files, connection, self._imports_s)
            self._children[pid] = connection
            send(connection, {"pid": pid})
        except (OSError, ValueError, KeyError, TypeError) as exc:
            print(f"rag_stack: a launcher was not served: {exc}", file=sys.stderr, flush=True)
            if connection not in self._children.values():
                connection.close()
        finally:
            if connection in self._children.values() or connection.fileno() < 0:
                for file in files:
                    os.close(file)
        return None

    def _refusal(self, request: Request, files: int) -> str | None:
        """Why a copy of this process would not be what was asked for."""
        if files != len(request.fds):
            return f"{len(request.fds)} open files were promised and {files} came"
        if said := [name for name in _BINDING if name in request.env]:
            return f"{said[0]} binds threads in a way that only a new process can follow"
        before, after, wanted = self._env, os.environ, request.env
        names = {name for env in (before, wanted) for name in env if name.startswith(_FIXED)} - _LATE
        # Imports set some themselves, here as in the process that asks.
        changed = sorted(n for n in names if wanted.get(n) not in (before.get(n), after.get(n)))
        return f"{', '.join(changed)} changed since the fork server started" if changed else None

    def _leave(self) -> None:
        """In a child: let go of what is the server's."""
        self._listener.close()
        for other in self._children.values():
            other.close()
        self._children.clear()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self._children.pop(pid, None)
            if connection is None:
                continue
            with connection:
                try:
                    send(connection, {"exit": os.waitstatus_to_exitcode(status)})
                except OSError:
                    continue  # its launcher has ended


def unclean() -> str | None:
    """Why this process must not be forked, or None."""
    threads = [_thread_name(task) for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        return f"imports started threads, which a fork would not have: {', '.join(sorted(threads))}"
    torch: Any = sys.modules.get("torch")
    for name in ("cuda", "xpu"):
        device = getattr(torch, name, None)
        if device is not None and device.is_initialized():
            return f"an import opened {name}, which a fork cannot share"
    return None


def main(listener: int, modules: Sequence[str]) -> int:
    """Serve, or be a child; returns the exit status. `listener` is a socket's number."""
    # A module of its own, for what only children do, and imported once they would.
    from rag_stack.generation.fork_child import become

    server = ForkServer(socket.socket(fileno=listener))
    try:
        server.preload(modules)
    except Exception as exc:
        # Whatever a library raises: the launchers that wait are let go, and start without.
        print(f"rag_stack: engine processes start without a fork server: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    copy = server.run()
    return 0 if copy is None else become(copy)


def _request(message: Mapping[str, Any], connection: socket.socket) -> Request:
    return Request(
        argv=[str(each) for each in message["argv"]],
        env={str(key): str(value) for key, value in message["env"].items()},
        cwd=str(message["cwd"]),
        fds=[int(fd) for fd in message["fds"]],
        launched_s=float(message["launched_s"]),
        launcher_pid=peer(connection).pid,
    )


def _thread_name(task: Path) -> str:
    try:
        return (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return task.name
