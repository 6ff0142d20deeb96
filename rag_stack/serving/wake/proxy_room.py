"""The waiting room in the head's Serve proxy, where requests of the engine go while no replica of it is known.

Serve calls `middlewares` in the proxy, and in every replica that listens itself, since the environment names it. What
the room has to know it asks of the application behind /v1/models, in the background: no request waits for that but the
first. A request that finds a replica does not come here, so that the room costs the warm path nothing.
"""

import asyncio
import time
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from rag_stack.api.outlook import Outlook, Rules
from rag_stack.api.places import Limits, Places
from rag_stack.api.waiting_room import WaitingRoom
from rag_stack.config import Release
from rag_stack.errors import UnavailableError
from rag_stack.serving.prefixes import MODELS_APP, OTHER_PREFIXES
from rag_stack.serving.ray_recorder import RayRecorder

# HAProxy's managers have the name without the second part.
_PROXY: Final = "SERVE_PROXY_ACTOR-fallback-"
_FRESH_S: Final = 1.0
_FIRST_LIMIT_S: Final = 5.0
_ASK_LIMIT_S: Final = 5.0


def middlewares() -> list[Middleware]:
    """What Serve puts around the proxy's app; nothing elsewhere."""
    if not (ray.get_runtime_context().get_actor_name() or "").startswith(_PROXY):
        return []
    return [Middleware(_room)]


def _room(app: ASGIApp) -> ASGIApp:
    return WaitingRoom(app, others=OTHER_PREFIXES, look=Lookout().look, places=Places(RayRecorder()))


class Lookout:
    """The newest outlook, asked for again once it is a second old. `handle` is that of the application, if known."""

    def __init__(
        self,
        *,
        handle: Any = None,  # noqa: ANN401 - Serve's handle is untyped
        first_limit_s: float = _FIRST_LIMIT_S,
        fresh_s: float = _FRESH_S,
    ) -> None:
        self._handle = handle
        self._first_limit_s = first_limit_s
        self._fresh_s = fresh_s
        self._outlook: Outlook | None = None
        self._asked_s = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def look(self) -> Outlook:
        """What was known last, at once; the first time, when it comes. Raises UnavailableError when it does not."""
        if (self._asking is None or self._asking.done()) and time.monotonic() - self._asked_s >= self._fresh_s:
            self._asked_s = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        if self._outlook is None and self._asking is not None:
            await asyncio.wait({self._asking}, timeout=self._first_limit_s)
        if self._outlook is None:
            raise UnavailableError("what is served is not known yet", retry_after_s=5)
        return self._outlook

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_ASK_LIMIT_S):
                self._handle = self._handle or await asyncio.to_thread(serve.get_app_handle, MODELS_APP)
                told = await self._handle.outlook.remote()
        except (RayServeException, RayError, TimeoutError):
            return  # the last one stays
        self._outlook = Outlook(rules_of(Release.model_validate(told["release"])), told["state"], told["estimate_s"])


def rules_of(release: Release) -> Rules:
    """What the room needs of a release. With several keys, one may take half of the places."""
    keys, wake = release.server.api_key_sha256, release.wake
    a_caller = wake.hold_requests if len(keys) < 2 else max(1, wake.hold_requests // 2)
    return Rules(
        models=(release.model.name,),
        api_key_sha256=keys,
        max_body_bytes=release.server.max_body_bytes,
        limits=Limits(wake.hold_requests, wake.hold_bytes, a_caller),
        hold_s=wake.hold_s,
        heartbeat_s=wake.heartbeat_s,
    )
