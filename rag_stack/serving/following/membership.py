"""A Serve replica's side of following: which handle it asks, under which name, and until when."""

import asyncio
import logging
from functools import partial
from typing import Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rag_stack.metrics import Recorder
from rag_stack.serving.asking import AskAdmin
from rag_stack.serving.following.follow import Follower
from rag_stack.serving.opening import OpenRetrieval
from rag_stack.serving.prefixes import ADMIN_APP

# A start is not held up by a coordinator that is absent; it joins when it appears.
_JOIN_LIMIT_S: Final = 60.0
_LEAVE_LIMIT_S: Final = 2.0
_SILENCE: Final = "index versions stay as they are, the coordinator does not answer"
_LOG: Final = logging.getLogger("ray.serve")


async def leave(follower: Follower) -> None:
    """Say that this process ends, so that nobody waits for it. A coordinator that does not answer finds out."""
    try:
        async with asyncio.timeout(_LEAVE_LIMIT_S):
            handle = await asyncio.to_thread(serve.get_app_handle, ADMIN_APP)
            await handle.leave.remote(follower.name)
    except (RayServeException, RayError, TimeoutError) as exc:
        _LOG.info("the coordinator was not told that this process ends: %r", exc)


def participant_name() -> str:
    """The replica that asks, as operators know it: application and id."""
    context = serve.get_replica_context()
    return f"{context.app_name}/{context.replica_id.unique_id}"


async def follow(retrieval: OpenRetrieval, recorder: Recorder) -> Follower:
    """Take part before this replica is ready, with what is wanted now; go on with `Follower.run`."""
    follower = Follower(
        participant_name(),
        retrieval.shelf,
        retrieval.tiers,
        serving=retrieval.following,
        sync=partial(AskAdmin(silence=_SILENCE), "sync"),
        recorder=recorder,
    )
    await follower.join(timeout_s=_JOIN_LIMIT_S)
    return follower
