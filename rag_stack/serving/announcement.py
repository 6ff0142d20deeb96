"""A replica's start, announced for as long as the replica lives: as metrics, and at /v1/models."""

import asyncio
import itertools
import logging
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rag_stack.config import Release
from rag_stack.generation.kv_settings import KvCapacity
from rag_stack.metrics import Recorder
from rag_stack.releases.start_history import label_of
from rag_stack.serving.prefixes import MODELS_APP
from rag_stack.serving.start_report import StartReport

_TURN_S = 5.0
_TURNS_A_CARD = 12
_TELL_LIMIT_S = 5.0
_LOG = logging.getLogger("ray.serve")


async def keep_announcing(
    report: StartReport, recorder: Recorder, release: Release, *, kv_cache: KvCapacity | None = None
) -> None:
    """Say how this replica's start of a release went, and what its engine's cache holds, until cancelled.

    Again and again: Ray drops a gauge that was not set for twenty seconds, and the application behind /v1/models may
    have been replaced since. It may also be absent; a replica serves without it.
    """
    handle: Any = None
    told = False
    card, label = report.to_card(), label_of(release)
    if kv_cache is not None:
        card["kv_cache"] = asdict(kv_cache)
    for turn in itertools.count():
        report.record(recorder)
        if not told or turn % _TURNS_A_CARD == 0:
            try:
                async with asyncio.timeout(_TELL_LIMIT_S):
                    handle = handle or await asyncio.to_thread(serve.get_app_handle, MODELS_APP)
                    await handle.keep_load.remote("replica", card, label)
                told = True
            except (RayServeException, RayError, TimeoutError) as exc:
                told = False
                _LOG.warning("/v1/models does not know of this replica's start: %s", exc)
        await asyncio.sleep(_TURN_S)
