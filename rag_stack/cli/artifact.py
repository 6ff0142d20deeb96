"""What the commands about artifacts share: their options, and how they meet what an older rag_stack has published."""

from pathlib import Path
from typing import Annotated

import typer

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactKind, ArtifactRef, Manifest
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactOutdatedError

Root = Annotated[
    str | None,
    typer.Option("--root", envvar="RAG_STACK_ROOT", help="URL of the object store (default: file://./var/artifacts)"),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", envvar="RAG_STACK_CACHE", help="This node's cache (default: var/cache)")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def artifacts_config(root: str | None, config: ArtifactsConfig | None = None) -> ArtifactsConfig:
    """The configuration, or the default one, with the root that was asked for."""
    return (config or ArtifactsConfig()).model_copy(update={} if root is None else {"root": root})


def published(catalog: Catalog, kind: ArtifactKind, name: str) -> list[Manifest]:
    """The manifests of all versions; those of an older rag_stack are named on stderr instead."""
    found: list[Manifest] = []
    for version in catalog.versions(kind, name):
        try:
            found.append(catalog.manifest(ArtifactRef(kind, name, version)))
        except ArtifactOutdatedError as exc:
            typer.echo(f"warning: {exc.message}", err=True)
    return found
