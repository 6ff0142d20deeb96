"""The coordinators behind the admin application's handle: how a process that takes part in something asks them."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rag_stack.serving.prefixes import ADMIN_APP

_LOG: Final = logging.getLogger("ray.serve")


def _handle() -> Any:  # noqa: ANN401 - Ray is untyped here
    return serve.get_app_handle(ADMIN_APP)


class AskAdmin:
    """Calls methods of the admin application. One that is absent is asked again; that is said once.

    `silence` is what an operator reads of it, before the reason. `find` blocks until it has the handle.
    """

    def __init__(self, *, silence: str, find: Callable[[], Any] = _handle) -> None:
        self._silence = silence
        self._find = find
        self._handle: Any = None
        self._silent = False

    async def __call__(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - each answers its own
        """What the method returns; None when the application does not answer. Cancelled, it cancels the call."""
        response: Any = None
        try:
            self._handle = self._handle or await asyncio.to_thread(self._find)
            response = getattr(self._handle, method).remote(*arguments)
            answer = await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except (RayServeException, RayError) as exc:
            if not self._silent:
                _LOG.warning("%s: %s", self._silence, exc)
            self._silent = True
            return None
        self._silent = False
        return answer
