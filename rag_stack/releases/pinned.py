"""A release with every version and digest filled in: what all replicas of one deployment agree on.

What belongs to a release, and what to the deployment that serves it: a release is what a replica takes at its start and
what decides an answer (weights, embedder, reranker, indexes, retrieval, prompt, engine settings, admission). The
deployment's are `DEPLOYMENT_FIELDS`: where things are, how many replicas there are, how they come and go. They are the
same for all versions of a release that one cluster serves, no version contains them, and a change of them needs a
restart.
"""

import hashlib
import time
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from rag_stack.artifacts.manifest import ArtifactKind, canonical_json
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import ArtifactChoice, Release, StoreConfig

DEPLOYMENT_FIELDS: Final = ("artifacts", "swap", "scaling", "wake", "drain", "rollout", "server")
_VERSION_HEX: Final = 12


class PinnedRelease(BaseModel):
    """A release that names exact versions and their digests. `created_at`, Unix seconds, is when it was pinned.

    `followed` are the stores whose release named no version: theirs is the one to begin with, and what is promoted
    later takes its place. All others stay at what the release names. `version` is made from `content`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    release: Release
    created_at: int
    followed: tuple[str, ...] = ()
    version: str = ""

    @property
    def content(self) -> dict[str, Any]:
        """What makes this release the one it is, as JSON: without what belongs to a deployment, or to a moment."""
        release = self.release.model_dump(mode="json", exclude=set(DEPLOYMENT_FIELDS))
        return {"release": release, "followed": list(self.followed)}


def pin(release: Release, tiers: Tiers) -> PinnedRelease:
    """Fill in the promoted version wherever the release names none, every digest, and the release's own version.

    By the digest a replica finds what its node has without asking the object store. Raises ArtifactNotFoundError or
    ArtifactCorruptError, with what to do.
    """

    def exact(kind: ArtifactKind, name: str, choice: ArtifactChoice | StoreConfig) -> dict[str, str]:
        manifest = tiers.resolve(kind, name, choice.version, digest=choice.digest)
        return {"version": manifest.version, "digest": manifest.digest}

    # Replicas run in directories of their own, so a path relative to this process must not travel.
    artifacts = release.artifacts.model_copy(
        update={"root": tiers.catalog.store.url, "cache": release.artifacts.cache.absolute()}
    )

    def exact_model(choice: ArtifactChoice) -> ArtifactChoice:
        return choice.model_copy(update=exact("models", choice.name, choice))

    update = {
        "model": exact_model(release.model),
        "embedder": exact_model(release.embedder),
        "reranker": exact_model(release.reranker) if release.reranker else None,
        "stores": tuple(store.model_copy(update=exact("indexes", store.index, store)) for store in release.stores),
        "artifacts": artifacts,
    }
    followed = tuple(store.name for store in release.stores if store.version is None and store.digest is None)
    pinned = PinnedRelease(release=release.model_copy(update=update), created_at=int(time.time()), followed=followed)
    return pinned.model_copy(update={"version": content_version(pinned)})


def content_version(pinned: PinnedRelease) -> str:
    """The version of a release: a prefix of its content's digest, so that the same content has the same one."""
    return hashlib.sha256(canonical_json(pinned.content)).hexdigest()[:_VERSION_HEX]
