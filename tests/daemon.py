"""Servers that are programs of their own: started, waited for by what they say, and ended with the test."""

import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0


@contextmanager
def daemon(
    command: Sequence[str], *, says: str, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program until the block ends, which begins when it has printed a line that holds `says`."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_drain, args=(process, lines), name=f"log of {Path(command[0]).name}")
    reader.start()
    try:
        _wait_until(lines, says, name=command[0])
        yield process
    finally:
        # Nothing of it is kept, and some take long to end well.
        process.kill()
        process.wait(_END_TIMEOUT_S)
        reader.join()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def program(name: str) -> str | None:
    """Where an installed program is, beside this Python or on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _wait_until(lines: "queue.Queue[str | None]", says: str, *, name: str) -> None:
    said, line = "", ""
    deadline = time.monotonic() + START_TIMEOUT_S
    while says not in line:
        try:
            found = lines.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty as exc:
            raise TimeoutError(f"{name} did not say {says!r} but {said[-2000:]!r}") from exc
        if found is None:
            raise RuntimeError(f"{name} ended: {said[-2000:]}")
        said, line = said + found, found


def _drain(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)
