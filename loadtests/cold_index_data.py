"""The index version that `loadtests.cold_index` opens, with what is asked of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rag_stack.artifacts.manifest import Manifest
from rag_stack.index.format import DOCUMENTS_FILE, INDEX_FILE, PASSAGES_FILE
from rag_stack.index.reader import Rows, Vectors

QUESTIONS_FILE, MANIFEST_FILE, INDEX_FOLDER = "questions.npz", "manifest.json", "index"
# Passages found for each question.
K = 8


@dataclass(frozen=True, slots=True)
class Questions:
    """Query vectors [n, d] and the rows [n, K] that a copy of the index in memory gives for them."""

    vectors: Vectors
    rows: Rows


@dataclass(frozen=True, slots=True)
class IndexData:
    """An index version on disk with what is asked of it.

    `mixed` questions are of all topics; `hot` ones of a few, whose lists have `hot_bytes`; `cold` ones of the others.
    `recall` is that of the mixed questions, of K.
    """

    directory: Path
    manifest: Manifest
    mixed: Questions
    hot: Questions
    cold: Questions
    hot_bytes: int
    recall: float

    @property
    def files(self) -> tuple[Path, Path]:
        """What a search reads."""
        return self.directory / INDEX_FILE, self.directory / PASSAGES_FILE

    @property
    def all_files(self) -> tuple[Path, ...]:
        """What opening reads."""
        return *self.files, self.directory / DOCUMENTS_FILE

    @property
    def size_bytes(self) -> int:
        """Of `files`."""
        return sum(path.stat().st_size for path in self.files)


def load(folder: Path) -> IndexData:
    """What `cold_index_build.ensure` has left."""
    kept = np.load(folder / QUESTIONS_FILE)
    mixed, hot, cold = (Questions(kept[name], kept[f"{name}_rows"]) for name in ("mixed", "hot", "cold"))
    manifest = Manifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
    hot_bytes, recall = int(kept["hot_bytes"]), float(kept["recall"])
    return IndexData(folder / INDEX_FOLDER, manifest, mixed, hot, cold, hot_bytes, recall)
