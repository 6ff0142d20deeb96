"""What a fault test serves: the demo's embedder and tokenizer, and a store with two small versions to flip between."""

import shutil
from pathlib import Path
from typing import Final

from loadtests.swap_data import EMBEDDER, INDEX, MODEL, publish_models, publish_versions
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.errors import ArtifactNotFoundError
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.environment import free_port

STORE: Final = "answers"
VERSIONS: Final = ("one", "two")
_ROWS: Final = 2_000


def published(directory: Path, *, replicas: int, served: Path | None = None, root: str | None = None) -> Release:
    """Publish under `served` (the directory, if not told), and a release that reads it at `root`. Blocking: seconds.

    The models are converted once, and kept in `var` for the next time.
    """
    shutil.copytree(_kept_models(), (served or directory) / "artifacts")
    store = ((served or directory) / "artifacts").absolute().as_uri()
    release = release_of(directory, root=root or store, replicas=replicas)
    tiers = open_tiers(release.artifacts.model_copy(update={"root": store}), MemoryRecorder())
    embedder = tiers.catalog.resolve("models", EMBEDDER)
    publish_versions(tiers.catalog, directory / "building", list(VERSIONS), embedder=embedder, rows=_ROWS)
    tiers.catalog.promote(tiers.catalog.resolve("indexes", INDEX, VERSIONS[0]).ref)
    return release


def _kept_models() -> Path:
    kept = Path("var/chaos/artifacts").absolute()
    catalog = Catalog(open_store(kept.as_uri()))
    try:
        catalog.resolve("models", EMBEDDER)
    except ArtifactNotFoundError:
        publish_models(catalog, generator=True, tell=lambda _: None)
    return kept


def release_of(directory: Path, *, root: str, replicas: int) -> Release:
    """The release: so many replicas, always."""
    return Release.model_validate(
        {
            "name": "chaos",
            "artifacts": {"root": root, "cache": str(directory / "cache")},
            "model": {"name": MODEL},
            "embedder": {"name": EMBEDDER},
            "stores": [{"name": STORE, "index": INDEX}],
            "retrieval": {"queue": 64},
            "engine": {"max_model_len": 2048},
            "drain": {"limit_s": 10.0},
            "server": {"port": free_port()},
            "scaling": {"min_replicas": replicas, "max_replicas": replicas},
        }
    )
