"""The engine's replicas as Serve's controller has them, by name."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from rag_stack.serving.rollout.coordinator import ServeState

# Serve's own deployment in an engine's application; all others are engines.
_ROUTER: Final = "LLMRouter"
_STATES: Final[Mapping[str, ServeState]] = {
    "RUNNING": "running",
    "PENDING_MIGRATION": "running",
    "STOPPING": "stopping",
}
_LIMIT_S: Final = 5.0
_LOG: Final = logging.getLogger("ray.serve")


async def engine_replicas(application: str) -> Mapping[str, ServeState] | None:
    """Every replica that is not gone; None when the controller does not answer. Asking starts none."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            details = await asyncio.to_thread(_details)
    except (RayServeException, RayError, TimeoutError) as exc:
        _LOG.info("Serve's controller does not say which replicas there are: %s", exc)
        return None
    deployments = details.get("applications", {}).get(application, {}).get("deployments", {})
    return {
        replica["replica_id"]: _STATES.get(_text(replica["state"]), "starting")
        for name, deployment in deployments.items()
        if name != _ROUTER
        for replica in deployment.get("replicas", ())
    }


def _details() -> dict[str, Any]:
    # The public `serve.status()` counts the replicas of a state and does not name them.
    details: dict[str, Any] = _get_global_client().get_serve_details()
    return details


def _text(state: Any) -> str:  # noqa: ANN401 - an enumeration of Serve's or its name
    return str(getattr(state, "value", state))
