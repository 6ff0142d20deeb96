"""A Ray to work on: the cluster that the environment names, or one of this process's own that ends with its work."""

import logging
import os
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
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
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
    # Not below TMPDIR's deepest folders: a socket's path must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rs-ray-", ignore_cleanup_errors=True) as directory:
        ray.init(
            address="local",
            # Actors hold a CPU each; tasks that cut take little and must not wait for them.
            num_cpus=2 * workers,
            object_store_memory=_OBJECT_STORE_BYTES + known_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=directory,
        )
        try:
            yield _capacity(cpus=2.0 * workers, gpus=ray.cluster_resources().get("GPU", 0.0), most=workers)
        finally:
            ray.shutdown()


def _of_cluster() -> Capacity:
    import ray

    resources = ray.cluster_resources()
    return _capacity(cpus=resources.get("CPU", 1.0), gpus=resources.get("GPU", 0.0), most=None)


def _capacity(*, cpus: float, gpus: float, most: int | None) -> Capacity:
    if gpus >= 1:
        # One embedder on a GPU takes all of it; half of the CPUs cut for it.
        return Capacity(int(gpus), min(1.0, cpus / 2 / gpus), 1.0, 1.0 if cpus >= 2 * gpus else 0.25, 256 << 20)
    # At least one of two CPUs, and one of eight, is left to those who cut.
    actors = most or max(1, int(cpus - max(1.0, cpus / 8)))
    return Capacity(actors, 1.0 if cpus > 1 else 0.5, 0.0, 0.25, 128 << 20)
