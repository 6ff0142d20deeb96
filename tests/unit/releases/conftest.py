"""A catalog with what a release pins, and releases of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from tests.pinnable import publish_docs, publish_model


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    """The models `generator` and `words`, and the index `docs` in v1 and v2, of which v1 is promoted."""
    config = ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache")
    tiers = open_tiers(config, MemoryRecorder())
    publish_model(tiers.catalog, tmp_path, "generator", "weights")
    embedder = publish_model(tiers.catalog, tmp_path, "words", "embedder")
    for version in ("v1", "v2"):
        publish_docs(tiers.catalog, tmp_path, version, embedder=embedder)
    tiers.catalog.promote(ArtifactRef("indexes", "docs", "v1"))
    return tiers


@pytest.fixture
def catalog(tiers: Tiers) -> Catalog:
    return tiers.catalog


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """A release file's content."""
    return {
        "name": "demo",
        "artifacts": {"root": f"file://{tmp_path}/store", "cache": f"{tmp_path}/cache"},
        "model": {"name": "generator"},
        "embedder": {"name": "words"},
        "stores": [{"name": "docs", "index": "docs", "version": "v1"}],
    }


@pytest.fixture
def pinned(tiers: Tiers, fields: dict[str, Any]) -> Callable[..., PinnedRelease]:
    """A pinned release with some fields changed."""

    def make(**changes: Any) -> PinnedRelease:
        return pin(Release.model_validate(fields | changes), tiers)

    return make
