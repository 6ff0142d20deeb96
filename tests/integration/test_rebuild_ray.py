"""A build whose passages are embedded on a real Ray, of this build's own."""

import os
from pathlib import Path

import numpy as np
import pytest

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import IndexVersionError
from rag_stack.index.documents import list_source
from rag_stack.index.embeddings import input_keys
from rag_stack.index.source import open_source
from rag_stack.index.spec import IndexSpec
from rag_stack.jobs import ray_embedding
from rag_stack.jobs.embedding import Progress
from rag_stack.jobs.index_build import build_index
from rag_stack.jobs.reading import SourceReader
from rag_stack.metrics import MemoryRecorder
from tests.rebuilt import CountingLoad, embedded, spec_of, write_pages

pytestmark = pytest.mark.long


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pages, and one large file of rows."""
    # A cluster of somebody else's is not ours to use.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "pages"
    write_pages(folder, range(40))
    rows = (f'{{"id": "{number}", "text": "row {number} of many"}}\n' for number in range(3000))
    (folder / "rows.jsonl").write_text("".join(rows))
    (folder / "broken.txt").write_bytes(b"\xff\xfe\x00")
    return folder


def _tiers(tmp_path: Path, name: str) -> Tiers:
    config = ArtifactsConfig(root=f"file://{tmp_path}/{name}", cache=tmp_path / f"cache-{name}")
    return open_tiers(config, MemoryRecorder())


def test_actors_embed_what_is_new_and_the_result_is_the_same(tmp_path: Path, pages: Path) -> None:
    tiers, log = _tiers(tmp_path, "root"), tmp_path / "embedded.log"
    spec = spec_of(pages)
    # Known already, so that no actor gets it.
    (pages / "rows.jsonl").rename(tmp_path / "rows.jsonl")
    first = build_index(spec, tiers=tiers, engine="local", load=CountingLoad(log))
    assert (first.embedded, embedded(log)) == (120, 120)
    (tmp_path / "rows.jsonl").rename(pages / "rows.jsonl")
    seen: list[Progress] = []
    report = build_index(spec, tiers=tiers, engine="ray", workers=2, load=CountingLoad(log), progress=seen.append)
    assert (report.passages, report.embedded, embedded(log)) == (3120, 3000, 3120)
    assert [each.document for each in report.skipped] == ["broken.txt"]
    assert seen[-1].done == 3000
    assert all(each.total is None or each.done <= each.total for each in seen)
    local = build_index(
        spec, tiers=_tiers(tmp_path, "local"), engine="local", load=CountingLoad(tmp_path / "other.log")
    )
    assert local.manifest.version == report.manifest.version
    # Nothing that is left to do is worth a Ray.
    again = build_index(spec, tiers=tiers, engine="ray", load=CountingLoad(log))
    assert (again.embedded, embedded(log), again.manifest) == (0, 3120, report.manifest)


class _BrokenLoad:
    """An embedder that works in one process and in no other."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __call__(self, device: str = "cpu") -> CountingLoad:
        model = CountingLoad(Path(os.devnull))(device)
        if os.getpid() != self._pid:
            model.encode = lambda texts, **_: np.full((len(texts), model.dimension), np.nan, np.float32)  # type: ignore[method-assign]
        return model  # type: ignore[return-value]


def test_what_fails_on_an_actor_is_told_as_it_is_here(tmp_path: Path, pages: Path) -> None:
    with pytest.raises(IndexVersionError, match="not finite"):
        build_index(spec_of(pages), tiers=_tiers(tmp_path, "root"), engine="ray", load=_BrokenLoad())  # type: ignore[arg-type]


def test_a_task_leaves_out_what_is_known(pages: Path) -> None:
    """Without Ray: what it sends on, in batches of like length."""
    spec: IndexSpec = spec_of(pages)
    tree = open_source(spec.source)
    reader = SourceReader(spec, tree)
    files = list_source(spec, tree).files
    batches = list(ray_embedding.batches_of(reader, files, CountingLoad(Path(os.devnull))(), known=None, batch=32))
    inputs = [text for each in batches for text in each["inputs"]]
    assert len(inputs) == len(set(inputs)) == 3120
    assert max(len(each["inputs"]) for each in batches) == 32
    known = np.sort(input_keys(sorted(inputs)[:3000]))
    some = list(ray_embedding.batches_of(reader, files, CountingLoad(Path(os.devnull))(), known=known, batch=32))
    assert {text for each in some for text in each["inputs"]} == set(sorted(inputs)[3000:])
    assert sum(each["weight"] for each in some) == sum(each["weight"] for each in batches)
