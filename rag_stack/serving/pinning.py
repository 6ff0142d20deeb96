"""A release with every version filled in: what all replicas of one deployment agree on."""

import time

from pydantic import BaseModel, ConfigDict

from rag_stack.artifacts.catalog import Catalog
from rag_stack.config import ArtifactChoice, Release


class PinnedRelease(BaseModel):
    """A release that names exact versions. `created_at`, Unix seconds, is when it was pinned."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    release: Release
    created_at: int


def pin(release: Release, catalog: Catalog) -> PinnedRelease:
    """Fill in the promoted version wherever the release names none.

    Raises ArtifactNotFoundError or ArtifactCorruptError, with what to do.
    """

    def pinned(choice: ArtifactChoice) -> ArtifactChoice:
        return choice.model_copy(update={"version": catalog.resolve("models", choice.name, choice.version).version})

    # Replicas run in directories of their own, so a path relative to this process must not travel.
    artifacts = release.artifacts.model_copy(
        update={"root": catalog.store.url, "cache": release.artifacts.cache.absolute()}
    )
    update = {
        "model": pinned(release.model),
        "embedder": pinned(release.embedder),
        "stores": tuple(
            store.model_copy(update={"version": catalog.resolve("indexes", store.index, store.version).version})
            for store in release.stores
        ),
        "artifacts": artifacts,
    }
    return PinnedRelease(release=release.model_copy(update=update), created_at=int(time.time()))
