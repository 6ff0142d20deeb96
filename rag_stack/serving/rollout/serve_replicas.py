"""Asks Serve's controller for the engine's replicas, and Ray which nodes stay."""

import asyncio
import logging
from typing import Any, Final

from ray.core.generated import gcs_pb2
from ray.exceptions import RayError
from ray.experimental.internal_kv import internal_kv_get_gcs_client
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from rag_stack.serving.rollout.served import Served

_LIMIT_S: Final = 5.0
# Or a thread would wait for Ray's head, while that is away, for as long as the process may.
_NODES_LIMIT_S: Final = 2.0
_LOG: Final = logging.getLogger("ray.serve")


async def engine_replicas(application: str) -> Served | None:
    """The replicas of an application's engine; None when Serve or Ray does not answer. Asking starts none."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await asyncio.to_thread(_served, application)
    except (RayServeException, RayError, TimeoutError) as exc:
        _LOG.info("Serve and Ray do not say which replicas there are, and where: %s", exc)
        return None


def active_nodes(gcs: Any) -> frozenset[str]:  # noqa: ANN401 - Ray is untyped here
    """The nodes, by their hexadecimal ids, that are alive and do not drain, as Serve's controller sees them.

    `gcs` is Ray's GcsClient. Blocking. Raises RayError.
    """
    known = gcs.get_all_node_info(timeout=_NODES_LIMIT_S)
    alive = {node.hex() for node, told in known.items() if told.state == gcs_pb2.GcsNodeInfo.ALIVE}
    return frozenset(alive - set(gcs.get_draining_nodes(timeout=_NODES_LIMIT_S)))


def _served(application: str) -> Served:
    # The public `serve.status()` counts the replicas of a state and does not name them.
    details: dict[str, Any] = _get_global_client().get_serve_details()
    # The nodes after it: where Serve has stopped a replica because its node drains, the node is known to drain by now.
    return Served.from_details(details, application, active_nodes=active_nodes(internal_kv_get_gcs_client()))
