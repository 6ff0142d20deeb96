"""Whether an index version may be promoted, and whether what is stored of it is right."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rag_stack.artifacts.catalog import Catalog, Expected
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.promotion import Pointer
from rag_stack.artifacts.stored_files import stored_files
from rag_stack.errors import ConflictError, GateFailedError
from rag_stack.index.format import IndexMetadata


@dataclass(frozen=True, slots=True)
class Verified:
    """A version whose every byte was read and found right; an index was opened too."""

    ref: ArtifactRef
    size_bytes: int
    seconds: float


def promote_index(
    catalog: Catalog,
    name: str,
    version: str,
    *,
    force: bool = False,
    expected_version: str | Expected | None = Expected.CURRENT,
    by: str | None = None,
    reason: str = "",
) -> Pointer:
    """Promote an index version that this release can read and whose gates have passed. Blocking.

    With `force` also one whose gates have not; the history then says that it was forced. Raises GateFailedError,
    IndexVersionError, ArtifactNotFoundError or PromotionConflictError, and ConflictError for a store made over HTTP.
    """
    _check_by_hand(catalog, name)
    ref = ArtifactRef("indexes", name, version)
    manifest = catalog.manifest(ref)
    IndexMetadata.of(manifest)
    failed = failed_gates(manifest)
    if failed and not force:
        told = "; ".join(f"{gate.get('name', 'a gate')}: {gate.get('detail', 'failed')}" for gate in failed)
        raise GateFailedError(f"{str(ref)!r} did not pass its gates, so it is not promoted unless by force: {told}")
    return catalog.promote(ref, expected_version=expected_version, by=by, reason=reason, forced=bool(failed))


def rollback_index(
    catalog: Catalog,
    name: str,
    *,
    to: str | None = None,
    expected_version: str | Expected | None = Expected.CURRENT,
    by: str | None = None,
    reason: str = "",
) -> Pointer:
    """Promote an index version that was promoted before, and that this release can read. Blocking.

    Raises as Catalog.rollback, IndexVersionError, and ConflictError for a store made over HTTP.
    """
    _check_by_hand(catalog, name)
    return catalog.rollback(
        "indexes", name, to=to, expected_version=expected_version, by=by, reason=reason, check=IndexMetadata.of
    )


def _check_by_hand(catalog: Catalog, name: str) -> None:
    """An index made over HTTP must be of the files that its store's state names, or searches show what is removed."""
    # Written by `stores.register`, a layer above.
    if catalog.store.exists(f"stores/{name}/store.json"):
        raise ConflictError(
            f"the index {name!r} is not promoted or rolled back by hand: it belongs to a store made over HTTP; change "
            "its files instead"
        )


def failed_gates(manifest: Manifest) -> list[Mapping[str, Any]]:
    """The gates that an index version did not pass when it was built."""
    gates = manifest.metadata.get("gates")
    listed = [gate for gate in gates if isinstance(gate, Mapping)] if isinstance(gates, list | tuple) else []
    return [gate for gate in listed if gate.get("passed") is not True]


def verify(catalog: Catalog, ref: ArtifactRef) -> Verified:
    """Read a version from the object store, check every byte, and open it if it is an index. Blocking.

    Raises ArtifactNotFoundError, ArtifactCorruptError, or IndexVersionError when its files do not belong together.
    """
    started = time.perf_counter()
    manifest = catalog.manifest(ref)
    with stored_files(catalog, manifest) as directory:
        if ref.kind == "indexes":
            # Brings FAISS: only for those who open one.
            from rag_stack.index.reader import IndexVersion

            IndexVersion.open(directory, manifest, embedder_digest=None)
    return Verified(ref, manifest.size_bytes, time.perf_counter() - started)
