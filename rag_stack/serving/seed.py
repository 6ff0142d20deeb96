"""What the applications of a cluster are built from: what is rolled out, or, before anything was, the release's file.

The file seeds the object store at the first start. From then on `rag-stack release apply` and `rollback` rule all that
a version contains, and a cluster that is deployed again, or whose head restarts, undoes none of it; the file goes on to
rule what belongs to the deployment.
"""

import logging
from typing import Final

from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import Release
from rag_stack.errors import ArtifactError, PromotionConflictError
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.published import load
from rag_stack.releases.rollout import Rollout

_LOG: Final = logging.getLogger("ray.serve")


def deployed_release(release: Release, tiers: Tiers, *, seeds: bool) -> PinnedRelease:
    """The release to deploy, with every version filled in. Blocking: a few reads, and the first time a few writes.

    Several may call it at once: of those that seed one wins, and all have what that one wrote. Raises ArtifactError for
    a store that does not answer or lacks what the file names, IncompatibleReleaseError for what cannot be served.
    """
    rollout = Rollout(tiers.catalog, release.name)
    plan = rollout.plan()
    if plan is None:
        pinned = pin(release, tiers)
        if not seeds:
            return pinned
        goal = _seed(rollout, pinned)
        if goal == pinned.version:
            return pinned
    else:
        goal = plan.goal
    # A path relative to this process must not travel; its replicas have another.
    artifacts = release.artifacts.model_copy(
        update={"root": tiers.catalog.store.url, "cache": release.artifacts.cache.absolute()}
    )
    found = load(tiers.catalog, release.name, goal, deployment=release.model_copy(update={"artifacts": artifacts}))
    if seeds:
        _tell_difference(release, found, tiers, rollout)
    return found


def _seed(rollout: Rollout, pinned: PinnedRelease) -> str:
    """Have the file be what is rolled out; the version that is."""
    try:
        return rollout.seed(pinned, reason="first start").goal
    except PromotionConflictError:
        plan = rollout.plan()  # somebody else was first
        if plan is None:
            raise
        return plan.goal
    except ArtifactError as exc:
        _LOG.warning("releases cannot be rolled out: %s", exc.message)
        return pinned.version


def _tell_difference(release: Release, found: PinnedRelease, tiers: Tiers, rollout: Rollout) -> None:
    """Say so where the file has been changed and not applied: nobody would see why nothing changes."""
    try:
        same = rollout.same(pin(release, tiers), found.version)
    except ArtifactError as exc:
        _LOG.warning("the file of %s names what is not there, and %s serves: %s", release.name, found.version, exc)
        return
    if not same:
        told = "%s serves as it was rolled out (%s), and its file differs: `rag-stack release apply` takes it over"
        _LOG.warning(told, release.name, found.version)
