"""Index builds for tests: a folder of pages, an embedder that counts, and a build as a process can run it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rag_stack.artifacts.tiers import Tiers
from rag_stack.index.documents import list_source
from rag_stack.index.reader import IndexVersion
from rag_stack.index.source import open_source
from rag_stack.index.spec import IndexSpec
from rag_stack.jobs.build import BuildReport, BuildSettings, build_version
from rag_stack.jobs.local_embedding import LocalEmbedding
from rag_stack.jobs.reading import SourceReader
from tests.embedder import WordEmbedder
from tests.killed import Place

NAME = "pages"
SEGMENT = 64


class CountingEmbedder(WordEmbedder):
    """Writes a byte a text into a file, at once, so that it survives whatever befalls its process."""

    def __init__(self, log: Path, *, dimension: int = 32) -> None:
        super().__init__(dimension=dimension)
        self._log = log

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> npt.NDArray[np.float32]:
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b"." * len(texts))
        os.close(descriptor)
        return super().encode(texts, batch_size=batch_size)


@dataclass(frozen=True, slots=True)
class CountingLoad:
    """Loads one, anywhere."""

    log: Path

    def __call__(self, device: str = "cpu") -> CountingEmbedder:
        return CountingEmbedder(self.log)


def write_pages(folder: Path, numbers: range) -> None:
    """A page each, with three passages of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        words = (" ".join(f"{part}{number}word{word}" for word in range(16)) for part in "abc")
        (folder / f"page{number:04}.txt").write_text("\n\n".join(words))


def spec_of(folder: Path, **fields: Any) -> IndexSpec:
    """Three passages a page. Recall is not the point: the words of pages have little in common."""
    settings: dict[str, Any] = {
        "name": NAME,
        "source": {"folder": folder},
        "embedder": {"name": "words"},
        "chunking": {"max_tokens": 16, "overlap_tokens": 0},
        "recipe": "Flat",
        **fields,
    }
    return IndexSpec.model_validate(settings)


def build(tiers: Tiers, spec: IndexSpec, log: Path, *, dimension: int = 32, **settings: Any) -> BuildReport:
    """Build a spec with threads of this process, in small segments."""
    tree = open_source(spec.source)
    listing = list_source(spec, tree)
    chosen = BuildSettings.of(spec)
    return build_version(
        [*listing.skipped, *SourceReader(spec, tree).read(listing.files)],
        name=spec.name,
        embedding=LocalEmbedding(CountingEmbedder(log, dimension=dimension)),
        settings=BuildSettings(
            **{
                **{key: getattr(chosen, key) for key in BuildSettings.__slots__},
                "flush_passages": SEGMENT,
                **settings,
            }
        ),
        tiers=tiers,
    )


def build_there(place: Place, folder: Path, log: Path) -> None:
    """The same in a process that a test kills."""
    build(place.tiers(), spec_of(folder), log)


def embedded(log: Path) -> int:
    """How many texts were embedded, by whomever."""
    return log.stat().st_size if log.exists() else 0


def content(tiers: Tiers, version: str | None = None) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """The passages of a version, and what a search finds for each of some of them."""
    manifest = tiers.catalog.resolve("indexes", NAME, version)
    index = IndexVersion.open(tiers.ensure_local(manifest).path, manifest, embedder_digest=None)
    rows = index.passages.table.to_pylist()
    queries = WordEmbedder(dimension=index.dimension).encode([row["text"] for row in rows[::7]])
    return rows, index.search(queries, 3)[1].tolist()
