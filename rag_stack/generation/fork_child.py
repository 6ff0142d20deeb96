"""In a process that the fork server forked: everything that would be otherwise in a new Python."""

import atexit
import fcntl
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

from rag_stack.generation.birth import Birth, born
from rag_stack.generation.fork_server import Copy
from rag_stack.generation.fork_start import LAUNCH
from rag_stack.generation.launcher import FORKED

# Above what any process passes on.
_OUT_OF_THE_WAY: Final = 512


def become(copy: Copy) -> NoReturn:
    """Run what the launcher was started for, and end as it does. Call it in the child's first thread."""
    _take_files(copy)
    request = copy.request
    with suppress(OSError):
        os.setpgid(0, os.getpgid(request.launcher_pid))
    os.chdir(request.cwd)
    _take_environment(copy)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _bind_threads(request.env)
    _reseed()
    # A child of this one is forked as well.
    multiprocessing.set_executable(str(LAUNCH))
    _end(_status(request.argv))


def _status(argv: Sequence[str]) -> int:
    """What the exit status of a Python with these arguments would be."""
    try:
        _run(argv)
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or 0
        print(exc.code, file=sys.stderr)
        return 1
    except BaseException:
        # As Python does for whatever nobody has caught.
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> NoReturn:
    """As Python ends, but for taking thousands of modules apart, of which every page would first be copied."""
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does at the end of a fork
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


def _take_files(copy: Copy) -> None:
    """The launcher's open files under the launcher's numbers, and a thread that ends this process with the launcher."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for fd in copy.files]
    number = fcntl.fcntl(copy.connection.fileno(), fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    for fd in copy.files:
        os.close(fd)
    copy.connection.close()
    for source, wanted in zip(high, copy.request.fds, strict=True):
        os.dup2(source, wanted, inheritable=True)
        os.close(source)
    threading.Thread(target=_end_with_launcher, args=(number,), name="launcher-watch", daemon=True).start()


def _end_with_launcher(connection: int) -> None:
    # The launcher sends nothing more: this ends when it does, by a reset where it has not read what it was sent.
    with suppress(OSError):
        while os.read(connection, 1):
            continue
    os.kill(os.getpid(), signal.SIGKILL)


def _take_environment(copy: Copy) -> None:
    request = copy.request
    birth = Birth(request.launched_s, time.time(), *copy.imports_s, parent=born(request.env))
    os.environ.clear()
    os.environ.update({**request.env, FORKED: birth.to_text()})


def _bind_threads(env: Mapping[str, str]) -> None:
    """The OpenMP threads that a new process would take from its environment.

    GNU's OpenMP gives each thread one of the CPUs that are named; here they share them.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if named := env.get("GOMP_CPU_AFFINITY"):
        os.sched_setaffinity(0, _cpus(named))
    allowed = len(os.sched_getaffinity(0))
    wanted = int(env.get("OMP_NUM_THREADS") or allowed)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def _cpus(text: str) -> set[int]:
    """`0 2 4-7` or `0,2,4-7`; strides are not used."""
    cpus: set[int] = set()
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def _reseed() -> None:
    """Python's own generator reseeds itself in a child; numpy's does not."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _run(argv: Sequence[str]) -> None:
    """As `python ARGV` would, as far as launchers ask for it: `... -c CODE ...`, or a script."""
    if "-c" in argv:
        place = argv.index("-c")
        sys.argv = ["-c", *argv[place + 2 :]]
        main = ModuleType("__main__")
        main.__dict__["__builtins__"] = __builtins__
        sys.modules["__main__"] = main
        exec(compile(argv[place + 1], "<string>", "exec"), main.__dict__)  # noqa: S102 - what Python does with `-c`
        return
    sys.argv = list(argv)
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")
