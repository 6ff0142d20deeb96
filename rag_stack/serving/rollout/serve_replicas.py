"""Asks Serve's controller for the engine's replicas."""

import asyncio
import logging
from typing import Any, Final

from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from rag_stack.serving.rollout.served import Served

_LIMIT_S: Final = 5.0
_LOG: Final = logging.getLogger("ray.serve")


async def engine_replicas(application: str) -> Served | None:
    """The replicas of an application's engine; None when the controller does not answer. Asking starts none."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            details = await asyncio.to_thread(_details)
    except (RayServeException, RayError, TimeoutError) as exc:
        _LOG.info("Serve's controller does not say which replicas there are: %s", exc)
        return None
    return Served.from_details(details, application)


def _details() -> dict[str, Any]:
    # The public `serve.status()` counts the replicas of a state and does not name them.
    details: dict[str, Any] = _get_global_client().get_serve_details()
    return details
