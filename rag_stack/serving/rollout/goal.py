"""Which version is to be served, as the object store tells it; for those who do not ask the coordinator."""

import logging
from typing import Final

from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ArtifactError
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.plan import RolloutStore
from rag_stack.releases.published import load

_LOG: Final = logging.getLogger("ray.serve")


def release_goal(deployed: PinnedRelease, tiers: Tiers, *, serving: PinnedRelease | None = None) -> PinnedRelease:
    """The release that is, or is to be, promoted; `serving`, or what was deployed, while that cannot be read."""
    serving = serving or deployed
    try:
        plan = RolloutStore(tiers.catalog.store, deployed.release.name).read()
        if plan is None or plan.goal == serving.version:
            return serving
        if plan.goal == deployed.version:
            return deployed
        return load(tiers.catalog, deployed.release.name, plan.goal, deployment=deployed.release)
    except ArtifactError as exc:
        _LOG.warning("%s stays, since the plan of the rollout cannot be read: %s", serving.version, exc)
        return serving
