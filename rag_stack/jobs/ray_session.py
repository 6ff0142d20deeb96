"""A Ray to work on: the cluster that the environment names, or one of this process's own that ends with its work."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rag_stack.errors import UnavailableError

# Of a Ray of our own: blocks on their way, of which there are few, and the known keys.
_OBJECT_STORE_BYTES: Final = 200 << 20
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's C++ parts warn of what is meant: an actor with arguments, a full object store that waits.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What may be used at once: actors that embed, CPUs and GPUs for each, CPUs for each task that cuts."""

    actors: int
    actor_cpus: float
    actor_gpus: float
    cut_cpus: float
    object_store_bytes: int


@contextmanager
def ray_session(*, workers: int, known_bytes: int) -> Iterator[Capacity]:
    """Ray, connected, until the block ends. Blocking, some seconds for one of our own.

    Takes what this process is connected to already, else the cluster of RAY_ADDRESS, as in a Ray job, else starts one
    for `workers` actors on this machine, with ports and a directory of its own and without a dashboard. `known_bytes`
    of its object store are for the known keys. Raises UnavailableError when the cluster does not answer.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield _of_cluster()
        return
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            with _silent():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as exc:
            raise UnavailableError(
                f"no Ray cluster answers at RAY_ADDRESS={address!r}: {exc}; start it, unset RAY_ADDRESS to use this "
                "machine alone, or build with --engine local"
            ) from exc
        try:
            yield _of_cluster()
        finally:
            ray.shutdown()
        return
    # Actors hold a CPU each; tasks that cut take little, and must not wait for them.
    cpus = workers + max(1, workers // 2)
    # Not below TMPDIR's deepest folders: a socket's path must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rs-ray-", ignore_cleanup_errors=True) as directory:
        with _silent():
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=_OBJECT_STORE_BYTES + known_bytes,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=directory,
            )
        try:
            yield capacity_of(cpus=float(cpus), gpus=ray.cluster_resources().get("GPU", 0.0), most=workers)
        finally:
            ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr: Ray's C++ part tells there that it will say little. What fails is raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _of_cluster() -> Capacity:
    import ray

    resources = ray.cluster_resources()
    return capacity_of(cpus=resources.get("CPU", 1.0), gpus=resources.get("GPU", 0.0))


def capacity_of(*, cpus: float, gpus: float, most: int | None = None) -> Capacity:
    """How a cluster's CPUs and GPUs are shared, with at most so many actors.

    Who cuts asks for another share of a CPU than who embeds: Ray Data would make one actor of what asks for the same,
    and as few of them as there are groups of files. An actor must not take the last CPU either.
    """
    if gpus >= 1:
        # One embedder on a GPU takes all of it; half of the CPUs cut for it.
        return Capacity(int(gpus), min(1.0, cpus / 2 / gpus), 1.0, min(0.5, cpus / 4), 256 << 20)
    if cpus < 2:
        return Capacity(1, cpus / 2, 0.0, cpus / 4, 128 << 20)
    # At least one of two CPUs, and one of eight, is left to those who cut.
    actors = most or max(1, int(cpus - max(1.0, cpus / 8)))
    return Capacity(actors, 1.0, 0.0, 0.5, 128 << 20)
