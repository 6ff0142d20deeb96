"""What `rag-stack cache warm` shall bring: addresses from the command line, and all that a release names."""

from collections.abc import Sequence
from typing import cast

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactKind, Manifest
from rag_stack.config import Release
from rag_stack.errors import InvalidRequestError


def to_warm(catalog: Catalog, refs: Sequence[str], release: Release | None) -> list[Manifest]:
    """The manifests, each once. Raises InvalidRequestError without any, ArtifactNotFoundError for what is not there."""
    if not refs and release is None:
        raise InvalidRequestError("say what to warm: KIND/NAME[/VERSION], such as models/llama, or --release FILE")
    addresses = [_address(ref) for ref in refs]
    if release is not None:
        addresses += [("models", choice.name, choice.version) for choice in release.models]
        addresses += [("indexes", store.index, store.version) for store in release.stores]
    found = [catalog.resolve(kind, name, version) for kind, name, version in addresses]
    return list({manifest.digest: manifest for manifest in found}.values())


def _address(ref: str) -> tuple[ArtifactKind, str, str | None]:
    parts = ref.strip("/").split("/")
    if len(parts) not in (2, 3):
        raise InvalidRequestError(
            f"{ref!r} is no address; expected KIND/NAME or KIND/NAME/VERSION, such as models/llama"
        )
    kind, name, version = (*parts, None)[:3]
    # The catalog says so when it is neither models nor indexes.
    return cast(ArtifactKind, kind), str(name), version
