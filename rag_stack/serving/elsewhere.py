"""Work in a process on some node of a running Ray cluster, for commands that are started beside it."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rag_stack.errors import RagStackError, UnavailableError

T = TypeVar("T")

# A resource that only the head node has.
_HEAD: Final = "node:__internal_head__"


def run_elsewhere(address: str, work: Callable[..., T], *arguments: object) -> T:
    """The result of `work(*arguments)` from a worker node, or from the head where there is no other. Blocking.

    `work` is a function that the cluster's nodes can import. It takes no CPUs of the cluster's count. Raises what it
    raises of ours, and UnavailableError when there is no cluster or it does not answer.
    """
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as exc:
        raise UnavailableError(
            f"no Ray cluster at {address!r}: {exc}; is --address a node's, and is its token set?"
        ) from exc
    try:
        there = NodeAffinitySchedulingStrategy(_some_node(), soft=False)
        task: Any = ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        result: T = ray.get(task.remote(*arguments))
        return result
    except RagStackError as exc:
        # Ray raises a class of its own making, which is of ours too.
        raise getattr(exc, "cause", exc) from exc
    except RayError as exc:
        raise UnavailableError(f"the cluster at {address!r} did not do it: {exc}") from exc
    finally:
        ray.shutdown()


def _some_node() -> str:
    alive = [node for node in ray.nodes() if node["Alive"]]
    workers = [node for node in alive if _HEAD not in node["Resources"]]
    return str((workers or alive)[0]["NodeID"])
