"""The published versions of an index as rows: for the command line and over HTTP."""

from collections.abc import Mapping
from typing import Any

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.promotion import Promotion
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError, ArtifactOutdatedError, IndexVersionError
from rag_stack.index.format import IndexMetadata
from rag_stack.index.judgement import failed_gates


def version_row(manifest: Manifest) -> dict[str, Any]:
    """What is told about one version. Raises IndexVersionError for one of another format."""
    metadata = IndexMetadata.of(manifest)
    gates = manifest.metadata.get("gates") or ()
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "parent": manifest.parent,
        "documents": metadata.documents,
        "passages": metadata.passages,
        "embedder": metadata.embedder.name,
        "recipe": metadata.recipe,
        "size_bytes": manifest.size_bytes,
        "gates": len(gates),
        "gates_failed": [str(gate.get("name")) for gate in failed_gates(manifest)],
    }


def version_rows(catalog: Catalog, name: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The versions that can be read, in the order of their publication, and what is wrong with the others, by version.

    `published_at` is by the store's clock.
    """
    pointer, rows, problems = catalog.promoted("indexes", name), [], {}
    for version in catalog.versions("indexes", name):
        ref = ArtifactRef("indexes", name, version)
        try:
            row = version_row(catalog.manifest(ref))
            published_at = catalog.published_at(ref).isoformat(timespec="seconds")
        except ArtifactNotFoundError:
            continue  # deleted since it was listed
        except (ArtifactCorruptError, ArtifactOutdatedError, IndexVersionError) as exc:
            problems[version] = exc.message
            continue
        promoted = pointer is not None and pointer.version == version
        rows.append({**row, "published_at": published_at, "promoted": promoted})
    return sorted(rows, key=lambda row: (row["published_at"], row["version"])), problems


def promotion_row(promotion: Promotion) -> dict[str, Any]:
    """What is told about one promotion; `restores` is the number of the one that a rollback brought back."""
    shown: Mapping[str, Any] = promotion.to_json()
    return {key: value for key, value in shown.items() if key not in ("id", "back")}
