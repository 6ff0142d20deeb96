"""The three servers that `loadtests.overhead` compares: ours, Ray Serve LLM without our layer, and bare vLLM.

All three get the same model directory, engine settings and engine environment, read from one release file. Only one
runs at a time; each is started as a subprocess and stopped by its process id.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx

from loadtests.closed_loop import LoadError
from loadtests.process_tree import ProcessTree, inherited_environment
from rag_stack.config import Release
from rag_stack.generation.engine_settings import on_this_node
from rag_stack.serving.environment import free_port, offline_environment

ArmName: TypeAlias = Literal["ours", "ray", "bare"]
# Rotated by one a round. Ours is first in the first round, because the others are given the prompts that it built.
ARMS: tuple[ArmName, ...] = ("ours", "ray", "bare")
START_TIMEOUT_S = 420.0
_POLL_S = 0.25
_HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
_READY_PATHS: Mapping[ArmName, str] = {"ours": "/ready", "ray": "/v1/models", "bare": "/health"}


@dataclass(frozen=True, slots=True)
class RunningArm:
    """A server that is ready: where it listens, what starting took, and its CPU seconds so far."""

    url: str
    start_s: float
    cpu_seconds: Callable[[], float]


@dataclass(frozen=True, slots=True)
class ArmStarter:
    """Starts arms of one release; their output goes to `logs`."""

    release_path: Path
    release: Release
    model_directory: Path
    logs: Path

    @contextlib.contextmanager
    def __call__(self, arm: ArmName) -> Iterator[RunningArm]:
        """The arm, ready; all its processes are gone afterwards. Raises LoadError when it does not start."""
        port = free_port()
        started = time.perf_counter()
        tree = ProcessTree(
            self.command(arm, port=port), environment=self.environment(arm), log=self.logs / f"{arm}.log"
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url + _READY_PATHS[arm], tree, timeout_s=START_TIMEOUT_S)
            yield RunningArm(url, time.perf_counter() - started, tree.cpu_seconds)
        finally:
            tree.stop()

    def command(self, arm: ArmName, *, port: int) -> list[str]:
        """The arm's command line."""
        release = str(self.release_path)
        match arm:
            case "ours":
                # The interpreter's own directory, so that both come from one environment.
                program = Path(sys.executable).parent / "rag-stack"
                return [str(program), "serve", release, "--host", "127.0.0.1", "--port", str(port)]
            case "ray":
                return [sys.executable, "-m", "loadtests.plain_app", "--release", release, "--port", str(port)]
            case "bare":
                return [
                    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                    *("--host", "127.0.0.1", "--port", str(port)),
                    *("--model", str(self.model_directory), "--served-model-name", self.release.model.name),
                    # Neither of the others writes a line a request.
                    "--disable-uvicorn-access-log",
                    *engine_flags(on_this_node(self.release.engine)),
                ]

    def environment(self, arm: ArmName) -> dict[str, str]:
        """The arm's environment. Ray gives the engine's part to its processes itself."""
        # As vLLM chooses its cores by itself, in each: ours would give it all of a small machine's.
        environment = {"VLLM_CPU_OMP_THREADS_BIND": "auto", **inherited_environment(), **offline_environment()}
        if arm == "bare":
            return environment | self.release.engine_env
        # Ports of its own: two Rays that start at once on one machine would both find the default ones free.
        ports = {name: str(free_port()) for name in _HAPROXY_PORTS}
        return environment | ports


def engine_flags(engine: Mapping[str, Any]) -> list[str]:
    """VLLM's command-line flags for a release's engine settings."""
    flags: list[str] = []
    for name, value in engine.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                continue
            case bool():
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            case Mapping():
                flags += [f"--{flag}", json.dumps(value)]
            case list() | tuple():
                flags += [f"--{flag}", *map(str, value)]
            case _:
                flags += [f"--{flag}", str(value)]
    return flags


def wait_until_ready(url: str, tree: ProcessTree, *, timeout_s: float) -> None:
    """Block until `url` answers 200. Raises LoadError, with what the server printed, when it ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    with httpx.Client(timeout=5.0) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url).status_code == 200:
                    return
            if (status := tree.exit_status()) is not None:
                raise LoadError(f"the server ended with status {status} before {url} was ready:\n{tree.tail()}")
            if time.monotonic() > deadline:
                raise LoadError(f"{url} was not ready after {timeout_s:.0f} s; the server printed last:\n{tree.tail()}")
            time.sleep(_POLL_S)
