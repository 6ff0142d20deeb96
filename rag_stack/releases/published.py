"""Release versions in the catalog: artifacts of kind `releases` with one file, the release's content as canonical JSON.

A manifest's metadata lists what its version pins, so that a collection keeps that as long as the version is there.
"""

import tempfile
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest, canonical_json, parse_json_object
from rag_stack.artifacts.retention import PINS_KEY, Retention
from rag_stack.artifacts.stored_files import stored_files
from rag_stack.config import Release, describe
from rag_stack.errors import ArtifactOutdatedError
from rag_stack.releases.pinned import DEPLOYMENT_FIELDS, PinnedRelease

RELEASE_FILE: Final = "release.json"


def publish(catalog: Catalog, pinned: PinnedRelease) -> Manifest:
    """Publish a pinned release under its version; again does nothing. Blocking.

    Raises ArtifactNotFoundError when something that it pins is not there, and PromotionConflictError while that is
    being deleted.
    """
    refs = pinned_refs(pinned.release)
    metadata = {PINS_KEY: [str(ref) for ref in refs]}
    with tempfile.TemporaryDirectory(prefix="rag-stack-release-") as directory:
        (Path(directory) / RELEASE_FILE).write_bytes(canonical_json(pinned.content))
        manifest = catalog.publish(
            Path(directory), kind="releases", name=pinned.release.name, version=pinned.version, metadata=metadata
        )
    # After the manifest, for which a collection looks after it has condemned: one of the two sees the other.
    Retention(catalog).require(refs, holder=str(manifest.ref))
    return manifest


def load(catalog: Catalog, name: str, version: str, *, deployment: Release | None = None) -> PinnedRelease:
    """A published version, with all that is no part of it as the deployment has it, else by default. Blocking.

    Raises ArtifactNotFoundError, ArtifactCorruptError, or ArtifactOutdatedError for what this rag_stack cannot read.
    """
    ref = ArtifactRef("releases", name, version)
    manifest = catalog.manifest(ref)
    with stored_files(catalog, manifest) as directory:
        content = parse_json_object((directory / RELEASE_FILE).read_bytes(), what=str(ref))
    own = {field: getattr(deployment, field) for field in DEPLOYMENT_FIELDS} if deployment else {}
    try:
        return PinnedRelease(
            release=Release.model_validate({**content.get("release", {}), **own}),
            created_at=int(catalog.published_at(ref).timestamp()),
            followed=content.get("followed", ()),
            version=version,
        )
    except ValidationError as exc:
        raise ArtifactOutdatedError(
            f"{str(ref)!r} was published by another rag_stack and is not read by this one ({describe(exc)}): "
            "apply its file again"
        ) from exc


def pinned_refs(release: Release) -> tuple[ArtifactRef, ...]:
    """What a release with all its versions filled in names."""
    models = (ArtifactRef("models", each.name, each.version or "") for each in release.models)
    return (*models, *(ArtifactRef("indexes", store.index, store.version or "") for store in release.stores))
