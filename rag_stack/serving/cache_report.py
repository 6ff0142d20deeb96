"""How full a node's cache is, told by who serves from it."""

import asyncio
import logging
from typing import Final

from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.errors import ArtifactError
from rag_stack.metrics import CACHE_BYTES, Recorder

_PERIOD_S: Final = 15.0
_LOG: Final = logging.getLogger("ray.serve")


async def keep_telling(cache: NodeCache, recorder: Recorder) -> None:
    """Until cancelled. A cache that cannot be read is measured again later; that is said once."""
    silent = False
    while True:
        try:
            recorder.record(CACHE_BYTES, await asyncio.to_thread(cache.eviction.used_bytes))
            silent = False
        except ArtifactError as exc:
            if not silent:
                _LOG.warning("how full the cache is cannot be told: %s", exc)
            silent = True
        await asyncio.sleep(_PERIOD_S)
