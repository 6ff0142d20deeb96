"""A release with every version and digest filled in: what all replicas of one deployment agree on."""

import time

from pydantic import BaseModel, ConfigDict

from rag_stack.artifacts.manifest import ArtifactKind
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import ArtifactChoice, Release, StoreConfig


class PinnedRelease(BaseModel):
    """A release that names exact versions and their digests. `created_at`, Unix seconds, is when it was pinned.

    `followed` are the stores whose release named no version: theirs is the one to begin with, and what is promoted
    later takes its place. All others stay at what the release names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    release: Release
    created_at: int
    followed: tuple[str, ...] = ()


def pin(release: Release, tiers: Tiers) -> PinnedRelease:
    """Fill in the promoted version wherever the release names none, and every digest.

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
    update = {
        "model": release.model.model_copy(update=exact("models", release.model.name, release.model)),
        "embedder": release.embedder.model_copy(update=exact("models", release.embedder.name, release.embedder)),
        "stores": tuple(store.model_copy(update=exact("indexes", store.index, store)) for store in release.stores),
        "artifacts": artifacts,
    }
    followed = tuple(store.name for store in release.stores if store.version is None and store.digest is None)
    return PinnedRelease(release=release.model_copy(update=update), created_at=int(time.time()), followed=followed)
