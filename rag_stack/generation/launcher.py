"""Stands in for a new Python process that the fork server forks ready-made; without one, becomes that process itself.

It is run as a script, by `launch` beside it, with a Python's arguments: whoever starts it (multiprocessing's `spawn`,
Ray's raylet) sees a child like any other, with the exit status of the process that was forked, to which it passes
signals on. It ends with its own parent, and the forked process ends with it. Standard library alone, since it must
start in milliseconds.
"""

# ruff: noqa: PTH208, PTH109, PTH119
# To import pathlib would take longer than all that this does.

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, Final, NamedTuple

# The address of the fork server, an abstract socket's name.
SOCKET: Final = "RAG_STACK_FORK_SOCKET"
# That of the one that forks Ray workers; `{node}` in it stands for the node on which Ray starts them.
STANDBY: Final = "RAG_STACK_STANDBY_SOCKET"
# The Python that runs this, and that it becomes when nothing forks for it.
PYTHON: Final = "RAG_STACK_PYTHON"
# Only in the environment of a process that was forked: what it may know of that, in JSON.
FORKED: Final = "RAG_STACK_FORKED"
_NODE: Final = "--node-id="
# A server that still imports answers late; one that hangs must not hold up a start for ever.
_ANSWER_S: Final = 120.0
_LENGTH: Final = struct.Struct("!I")
_MAX_FDS: Final = 250
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: list[str]) -> None:
    """Never returns: it ends as the forked process does, or becomes a Python with these arguments."""
    launched_s = time.time()
    if not is_forkable(arguments):
        _become_python(arguments)
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    parent = os.getppid()
    try:
        watched = os.pidfd_open(parent)
        name = _address(arguments)
        server = connect(name, timeout_s=_ANSWER_S)
        pid = _ask(server, name, arguments, [fd for fd in fds if _is_open(fd)], launched_s)
    except (OSError, KeyError, ValueError) as exc:
        print(f"rag_stack: nothing forked, a whole Python starts instead: {exc}", file=sys.stderr, flush=True)
        _become_python(arguments)
    _follow(pid, server, watched)


def is_forkable(arguments: list[str]) -> bool:
    """Whether these are a child of multiprocessing's `spawn`, or a Ray worker."""
    return _is_ray_worker(arguments) or (arguments[-1:] == ["--multiprocessing-fork"] and "-c" in arguments)


def connect(name: str, *, timeout_s: float) -> socket.socket:
    """To this user's server of that name. Raises OSError."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.settimeout(timeout_s)
    server.connect("\0" + name)
    if peer(server).user != os.getuid():
        raise OSError(f"the fork server {name} is another user's")
    return server


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket, as the kernel says."""

    pid: int
    user: int


def peer(connection: socket.socket) -> Peer:
    """Of a socket that is connected."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _group = struct.unpack("3i", told)
    return Peer(pid, user)


def send(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] | list[int] = ()) -> None:
    """One message, with copies of open files."""
    body = json.dumps(message).encode()
    # With the first byte, so that whoever reads it has the files too.
    socket.send_fds(connection, [_LENGTH.pack(len(body))], list(fds))
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What `send` sent. Raises OSError when the other end has closed."""
    start, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, _MAX_FDS)
    while len(start) < _LENGTH.size:
        start += _piece(connection, _LENGTH.size - len(start))
    (size,) = _LENGTH.unpack(start)
    body = b""
    while len(body) < size:
        body += _piece(connection, size - len(body))
    message = json.loads(body)
    if not isinstance(message, dict):
        raise OSError(f"the fork server sent {message!r}")
    return message, fds


def _piece(connection: socket.socket, size: int) -> bytes:
    piece = connection.recv(size)
    if not piece:
        raise OSError("the fork server has ended")
    return piece


def _ask(server: socket.socket, name: str, arguments: list[str], fds: list[int], launched_s: float) -> int:
    """The id of the process that was forked. Its own children come from the same server."""
    env = {**os.environ, SOCKET: name}
    request = {"argv": arguments, "env": env, "cwd": os.getcwd(), "fds": fds, "launched_s": launched_s}
    send(server, request, fds)
    answer, _ = receive(server)
    if "pid" not in answer:
        raise OSError(str(answer.get("refused", answer)))
    return int(answer["pid"])


def _follow(pid: int, server: socket.socket, parent: int) -> None:
    """Pass signals on until the forked process or the parent has ended."""

    def pass_on(number: int, _frame: object) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    readable, _, _ = select.select([server, parent], [], [])
    if server not in readable:
        os._exit(1)
    try:
        status = int(receive(server)[0]["exit"])
    except (OSError, KeyError, ValueError):
        # The server ended before the process that it forked: how that ended, nobody knows any more.
        os._exit(255)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def _become_python(arguments: list[str]) -> None:
    # That of a parent that was forked says nothing of this one.
    os.environ.pop(FORKED, None)
    python = os.environ.get(PYTHON) or sys.executable
    os.execv(python, [python, *arguments])  # noqa: S606 - what this process was started to be


def _is_ray_worker(arguments: list[str]) -> bool:
    return bool(arguments) and os.path.basename(arguments[0]) == "default_worker.py"


def _address(arguments: list[str]) -> str:
    if not _is_ray_worker(arguments):
        return os.environ[SOCKET]
    node = next((each.removeprefix(_NODE) for each in arguments if each.startswith(_NODE)), "")
    return os.environ[STANDBY].replace("{node}", node)


def _is_open(fd: int) -> bool:
    """The listing's own descriptor is in the listing, and gone."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
