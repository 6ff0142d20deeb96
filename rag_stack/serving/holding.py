"""What a deployment needs of the object store, held there: the release's pins, and a lease of what is mapped now."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.retention import Retention
from rag_stack.errors import ArtifactError
from rag_stack.releases.pinned import PinnedRelease

# A lease lasts a day.
_RENEW_S: Final = 3600.0
_AGAIN_S: Final = 60.0
_LOG: Final = logging.getLogger("ray.serve")


class Holding:
    """Writes pins and leases when they change, and again every hour. One that cannot is told, and serves all the same.

    Two deployments of one release have a lease each, and share the pins.
    """

    def __init__(
        self, retention: Retention, pinned: PinnedRelease, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retention = retention
        self._release = pinned.release.name
        self._holder = f"{pinned.release.name}-{pinned.created_at}"
        self._pinned = pinned_refs(pinned)
        self._clock = clock
        self._held: frozenset[ArtifactRef] | None = None
        self._again_s = 0.0

    async def hold(self, mapped: frozenset[ArtifactRef]) -> None:
        """Hold the release's own versions, and those that are mapped."""
        if mapped == self._held and self._clock() < self._again_s:
            return
        try:
            await asyncio.to_thread(self._write, mapped)
        except ArtifactError as exc:
            _LOG.warning("`rag-stack index gc` does not know what this release uses: %s", exc)
            self._held, self._again_s = mapped, self._clock() + _AGAIN_S
            return
        self._held, self._again_s = mapped, self._clock() + _RENEW_S

    def _write(self, mapped: frozenset[ArtifactRef]) -> None:
        self._retention.lease(self._holder, sorted(mapped, key=str))
        self._retention.pin(self._release, self._pinned)


def pinned_refs(pinned: PinnedRelease) -> Sequence[ArtifactRef]:
    """The versions that a release begins with."""
    release = pinned.release
    models = [ArtifactRef("models", each.name, each.version or "") for each in release.models]
    return [*models, *(ArtifactRef("indexes", store.index, store.version or "") for store in release.stores)]
