"""What the admin application tells operators in gauges: the indexes' age and refusals, and where the rollout is."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, get_args

from rag_stack.metrics import ROLLOUT_SHARE, ROLLOUT_STATE, Recorder
from rag_stack.releases.plan import RolloutPlan, State
from rag_stack.serving.following.index_watch import IndexWatch

# Ray drops a gauge that is not set for twenty seconds.
_TELL_S: Final = 5.0
_TELLS_A_LOOK: Final = 3


async def keep_telling(
    indexes: IndexWatch,
    served: Callable[[], Iterable[tuple[str, str, str]]],
    plan: Callable[[], RolloutPlan | None],
    recorder: Recorder,
) -> None:
    """Until cancelled. `served` is (store, index, version) of each followed store; see IndexWatch.look."""
    while True:
        await asyncio.to_thread(indexes.look, list(served()))
        for _ in range(_TELLS_A_LOOK):
            indexes.tell()
            tell_plan(plan(), recorder)
            await asyncio.sleep(_TELL_S)


def tell_plan(plan: RolloutPlan | None, recorder: Recorder) -> None:
    """Where a rollout is; nothing before there is a plan."""
    if plan is None:
        return
    for state in get_args(State):
        recorder.record(ROLLOUT_STATE, float(state == plan.state), {"state": state})
    recorder.record(ROLLOUT_SHARE, plan.share if plan.running else 0.0)
