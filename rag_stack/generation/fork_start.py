"""Starts a fork server for the engine's processes, and has multiprocessing ask it for them. Imports nothing heavy."""

import importlib.util
import multiprocessing
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final

from rag_stack.generation.launcher import FORKED, PYTHON, SOCKET

# `cpu` or `gpu`: have engine processes forked, on that platform. Absent: every one is started as a new Python.
FORK: Final = "RAG_STACK_FORK"
LAUNCH: Final = Path(__file__).with_name("launch")
# What the engine's core and its workers import before they serve.
ENGINE_MODULES: Final = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "rag_stack.generation.worker",
)
_BACKLOG: Final = 64
_PROGRAM: Final = (
    "import sys; from rag_stack.generation.fork_server import main; sys.exit(main(int(sys.argv[1]), sys.argv[2:]))"
)
# Told by its exit status whether it was forked.
_PROBE: Final = f"import os, sys; sys.exit({FORKED!r} not in os.environ)"
# Libraries that are to start no threads of their own.
_SINGLE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


class ForkServerProcess:
    """A fork server as its owner sees it: it ends with its owner, or with `stop`."""

    def __init__(self, name: str, modules: Sequence[str], *, environ: Mapping[str, str]) -> None:
        self.name = name
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # Here and now, so that who connects before it has started waits for it.
            listener.bind("\0" + name)
            listener.listen(_BACKLOG)
            number = listener.fileno()
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-c", _PROGRAM, str(number), *modules],
                stdin=subprocess.PIPE,
                pass_fds=(number,),
                env={**environ, **_SINGLE_THREAD, "PYTHONPATH": path},
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether it is no more."""
        return self._process.poll() is not None

    def wait_ready(self, *, timeout_s: float) -> bool:
        """Whether it forks, once it has imported. Blocking."""
        command = [str(LAUNCH), "-c", _PROBE, "--multiprocessing-fork"]
        env = {**os.environ, SOCKET: self.name, PYTHON: sys.executable}
        try:
            return subprocess.run(command, env=env, timeout=timeout_s, check=False).returncode == 0  # noqa: S603 - ours
        except subprocess.TimeoutExpired:
            return False

    def stop(self) -> None:
        """Have it fork nothing more. What it has forked lives on."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(environ: MutableMapping[str, str] = os.environ) -> ForkServerProcess | None:
    """Start a server beside this process, unless this one is forked itself or FORK is not set.

    From then on what multiprocessing spawns in this process is forked by it, and so in those. Keep what is returned.
    """
    platform = environ.get(FORK, "")
    if platform not in ("cpu", "gpu") or SOCKET in environ or not os.access(LAUNCH, os.X_OK):
        return None
    name = f"rag-stack-fork-{uuid.uuid4().hex}"
    server = ForkServerProcess(name, ENGINE_MODULES, environ={**environ, **platform_environment(platform, environ)})
    use(name, environ)
    return server


def use(name: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Have what multiprocessing spawns here forked by the server of that name."""
    environ[SOCKET] = name
    environ[PYTHON] = sys.executable
    multiprocessing.set_executable(str(LAUNCH))


def platform_environment(platform: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What vLLM 0.29's CPU platform sets for its processes before it spawns them, as far as imports read it."""
    if platform != "cpu":
        return {}
    return {
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
        "VLLM_DISABLE_SHARED_EXPERTS_STREAM": "1",
        **_preloaded(environ),
    }


def _preloaded(environ: Mapping[str, str]) -> dict[str, str]:
    """The libraries that vLLM has its CPU processes load first: torch's OpenMP and its own allocator."""
    libraries = environ.get("LD_PRELOAD", "")
    torch, vllm = _directory("torch"), _directory("vllm")
    if torch is not None and not any(each in libraries for each in ("libomp", "libgomp", "libiomp")):
        folders = (torch.parent / "torch.libs", torch / "lib")
        found = [str(path) for folder in folders for path in folder.glob("libgomp*.so*")]
        libraries = ":".join(filter(None, (libraries, *found[:1])))
    if vllm is not None and "libtcmalloc" not in libraries:
        patterns = ("libtcmalloc_minimal*.so*", "libtcmalloc.so*")
        found = [str(path) for pattern in patterns for path in (vllm / "libs").glob(pattern)]
        libraries = ":".join(filter(None, (*found[:1], libraries)))
    return {"LD_PRELOAD": libraries} if libraries else {}


def _directory(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None
