"""A root with all that can be promoted: models with real safetensors, two versions of an index, a release, a store."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.rollout import Rollout
from rag_stack.stores.files import Files
from rag_stack.stores.register import Register
from rag_stack.stores.store import Attachment
from tests.embedder import WordEmbedder
from tests.layer import TOWN, publish_index

QUESTION = "What does the lighthouse of Alden burn?"
CANARY = {"question": QUESTION, "expect": ["lighthouse.txt"]}


def publish_weights(catalog: Catalog, folder: Path, name: str, *, seed: int = 0, tensors: int = 3) -> Manifest:
    """A model of small real tensors, promoted."""
    source = folder / f"{name}-{seed}"
    source.mkdir(parents=True)
    values = np.random.default_rng(seed)
    save_file({f"layer{n}": values.random((64, 64), np.float32) for n in range(tensors)}, source / "model.safetensors")
    (source / "config.json").write_text("{}")
    manifest = catalog.publish(source, kind="models", name=name, metadata={})
    catalog.promote(manifest.ref)
    return manifest


def publish_town(catalog: Catalog, folder: Path, version: str, *, embedder: Manifest, promote: bool = True) -> Manifest:
    """A version of the index `docs`, made with a published embedder."""
    manifest = publish_index(
        catalog,
        folder / f"docs-{version}",
        TOWN if version != "v1" else TOWN[:2],
        embedder=WordEmbedder(),
        name="docs",
        digest=embedder.digest,
        version=version,
    )
    if promote:
        catalog.promote(manifest.ref)
    return manifest


def release_of(root: str, cache: Path, **changes: Any) -> Release:
    """A release with a store that follows the index `docs`, and a canary question."""
    fields: dict[str, Any] = {
        "name": "demo",
        "artifacts": {"root": root, "cache": str(cache)},
        "model": {"name": "generator"},
        "embedder": {"name": "words"},
        "stores": [{"name": "docs", "index": "docs"}],
        "rollout": {"steps": [1.0], "step_s": 0, "canaries": [CANARY]},
    }
    return Release.model_validate(fields | changes)


def apply(tiers: Tiers, release: Release) -> PinnedRelease:
    """Promote a release at once, as a first one is."""
    pinned = pin(release, tiers)
    Rollout(tiers.catalog, release.name).apply(pinned, restart=True)
    return pinned


def fill(root: str, folder: Path) -> Tiers:
    """Everything, below a root; scratch files and the node's cache go below `folder`."""
    tiers = open_tiers(ArtifactsConfig(root=root, cache=folder / "cache"), MemoryRecorder())
    catalog = tiers.catalog
    publish_weights(catalog, folder, "generator")
    embedder = publish_weights(catalog, folder, "words", seed=1)
    for version in ("v1", "v2"):
        publish_town(catalog, folder, version, embedder=embedder)
    apply(tiers, release_of(root, folder / "cache"))
    upload = folder / "manual.txt"
    upload.write_text("Hold the button for ten seconds.")
    file = Files(catalog.store).add(upload, filename="manual.txt", purpose="assistants")
    attachment = Attachment(file_id=file.file_id, filename=file.filename, size_bytes=file.size_bytes)
    Register(catalog.store).create(name="manuals", attachments=[attachment])
    return tiers


def words(_: Path, manifest: Manifest) -> WordEmbedder:
    """Loads the embedder that made the vectors of `docs`."""
    assert manifest.name == "words"
    return WordEmbedder()


def catalog_at(root: str) -> Catalog:
    """The catalog of a root."""
    return Catalog(open_store(root))


def docs(version: str) -> ArtifactRef:
    """A version of the index."""
    return ArtifactRef("indexes", "docs", version)
