"""Whether a release fits together, and whether a running deployment can go from one to another replica by replica."""

from typing import Any, Final

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.config import Digest, Release
from rag_stack.errors import ArtifactError, IncompatibleReleaseError, IndexVersionError
from rag_stack.index.format import IndexMetadata
from rag_stack.releases.pinned import PinnedRelease

# Engine settings by which Ray places a replica and its workers; one deployment has one placement for all its replicas.
PLACEMENT_SETTINGS: Final = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "distributed_executor_backend",
)
_PARALLEL_BY_DEFAULT: Final = 1
# What an import notes of a cross-encoder, as its `task`.
_RERANK: Final = "rerank"


def check_release(pinned: PinnedRelease, catalog: Catalog) -> None:
    """Raise IncompatibleReleaseError unless all that the release pins is there, whole, and of one embedder. Blocking.

    Looks at manifests and sizes, not at every byte: a replica does that when it fetches, and `rag-stack index verify`.
    """
    release = pinned.release
    for each in release.models:
        manifest = _stored(catalog, ArtifactRef("models", each.name, each.version or ""), each.digest)
        if each == release.reranker:
            _check_reranker(manifest)
    for store in release.stores:
        manifest = _stored(catalog, ArtifactRef("indexes", store.index, store.version or ""), store.digest)
        _check_embedder(release, manifest, store=store.name)


def check_change(old: PinnedRelease, new: PinnedRelease) -> None:
    """Raise IncompatibleReleaseError when one deployment cannot serve both, side by side, and then the new one."""
    if old.release.model.name != new.release.model.name:
        raise IncompatibleReleaseError(
            f"the model's name changes from {old.release.model.name!r} to {new.release.model.name!r}, and clients that "
            "ask for the old one would get 404: import the new weights as another version of the same name (`rag-stack "
            f"model import --name {old.release.model.name}`), or give this release another `name:`"
        )
    changed = [f"engine.{key}" for key in PLACEMENT_SETTINGS if _placement(old, key) != _placement(new, key)]
    changed += ["engine_env"] if old.release.engine_env != new.release.engine_env else []
    changed += ["gpu_index.enabled"] if old.release.gpu_index.enabled != new.release.gpu_index.enabled else []
    if changed:
        raise IncompatibleReleaseError(
            f"{', '.join(changed)} cannot change replica by replica: one deployment has one placement and one "
            "environment for all its replicas. Stop the server, apply the file with --restart, and start it again"
        )


def _stored(catalog: Catalog, ref: ArtifactRef, digest: Digest | None) -> Manifest:
    """The manifest of what must be there with all its files."""
    try:
        manifest = catalog.manifest(ref)
        sizes = {entry.key: entry.size_bytes for entry in catalog.store.entries(str(ref))}
    except ArtifactError as exc:
        raise IncompatibleReleaseError(f"the release pins what cannot be served: {exc.message}") from exc
    if digest is not None and manifest.digest != digest:
        raise IncompatibleReleaseError(
            f"{str(ref)!r} has digest {manifest.digest}, the release pins {digest}: it is not the same content; "
            "correct the release, or publish again under another version"
        )
    for entry in manifest.files:
        found = sizes.get(f"{ref}/{entry.path}")
        if found != entry.size_bytes:
            told = "is missing" if found is None else f"has {found} bytes and not {entry.size_bytes}"
            raise IncompatibleReleaseError(
                f"{entry.path!r} of {str(ref)!r} {told} in {catalog.store.url}: publish it again under another version"
            )
    return manifest


def _check_embedder(release: Release, manifest: Manifest, *, store: str) -> None:
    try:
        built_with = IndexMetadata.of(manifest).embedder
    except IndexVersionError as exc:
        raise IncompatibleReleaseError(f"the store {store!r} cannot be served: {exc.message}") from exc
    if built_with.digest != release.embedder.digest:
        asked = f"{release.embedder.name} {release.embedder.version}"
        raise IncompatibleReleaseError(
            f"the index of the store {store!r}, {str(manifest.ref)!r}, was built with the embedder "
            f"{built_with.name!r} ({built_with.digest[:19]}), and the release queries with {asked!r} "
            f"({(release.embedder.digest or '')[:19]}): build an index version with it and release that, or go back to "
            "the embedder"
        )


def _check_reranker(manifest: Manifest) -> None:
    if (task := manifest.metadata.get("task")) != _RERANK:
        raise IncompatibleReleaseError(
            f"the release's reranker {str(manifest.ref)!r} is a model for {task!r}, expected one for {_RERANK!r}: name "
            "a cross-encoder that `rag-stack model import` has published"
        )


def _placement(pinned: PinnedRelease, key: str) -> Any:  # noqa: ANN401 - vLLM's own value
    default = _PARALLEL_BY_DEFAULT if key.endswith("_size") else None
    return pinned.release.engine.get(key, default)
