"""An index version while it comes into memory: right answers at any time, within a budget. Real FAISS, cold files."""

import logging
import mmap
import os
import resource
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest

from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.artifacts.residency import resident_bytes
from rag_stack.errors import IndexVersionError
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import Cut
from rag_stack.index.documents import Document
from rag_stack.index.format import INDEX_FILE, PASSAGES_FILE, EmbedderRef
from rag_stack.index.probe import Probe, head_bytes
from rag_stack.index.reader import IndexVersion, Prefault, Vectors, copied_bytes
from rag_stack.types import Passage
from tests.page_cache import mapped_kib, undisturbed

D, PASSAGES, LISTS, NPROBE = 64, 16_000, 64, 4
EMBEDDER = EmbedderRef(name="seeded", digest="sha256:" + "0" * 64)


def _vectors(count: int, *, seed: int) -> Vectors:
    """Unit vectors around 80 centres, the same centres whatever the seed."""
    centres = np.random.default_rng(0).standard_normal((80, D))
    draw = np.random.default_rng(seed)
    vectors = centres[draw.integers(0, 80, count)] + 0.3 * draw.standard_normal((count, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


QUERIES = _vectors(50, seed=2)


def _write(directory: Path, *, recipe: str, search_parameters: str, count: int = PASSAGES) -> Manifest:
    directory.mkdir()
    document = Document(document_id="d", text="x", title="", uri="")
    passages = tuple(Passage(f"d-{n}", "d", "x", "", "", 0, 1) for n in range(count))
    cut = Cut((document,), passages, ("x",) * count, ())
    metadata = write_index(
        directory,
        cut,
        _vectors(count, seed=1),
        embedder=EMBEDDER,
        recipe=recipe,
        search_parameters=search_parameters,
    )
    files = describe_files(directory)
    return Manifest(kind="indexes", name="docs", version="v1", files=files, metadata=metadata.to_json())


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return _write(tmp_path / "index", recipe=f"IVF{LISTS},Flat", search_parameters=f"nprobe={NPROBE}")


def _open_cold(directory: Path, manifest: Manifest) -> IndexVersion:
    for path in directory.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        if resident_bytes(path):
            pytest.skip("this file system lives in memory")
    return IndexVersion.open(directory, manifest, embedder_digest=None)


def _expected(directory: Path, *, k: int = 5) -> list[list[int]]:
    """The answers of a copy in memory."""
    return faiss.read_index(str(directory / INDEX_FILE)).search(QUERIES, k)[1].tolist()


def _sizes(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in (INDEX_FILE, PASSAGES_FILE))


def test_a_prefault_brings_vectors_and_passages_and_says_what_the_disk_gave(tmp_path: Path, manifest: Manifest) -> None:
    directory = tmp_path / "index"

    def twice() -> tuple[Prefault, int, Prefault]:
        index = _open_cold(directory, manifest)
        first = index.prefault()
        return first, sum(resident_bytes(directory / name) for name in (INDEX_FILE, PASSAGES_FILE)), index.prefault()

    first, resident, again = undisturbed(twice)
    assert (first.whole, first.size_bytes) == (True, _sizes(directory))
    assert 0 < first.read_bytes <= _sizes(directory)
    assert resident == _sizes(directory)
    assert (again.whole, again.size_bytes, again.read_bytes) == (True, _sizes(directory), 0)


@pytest.mark.parametrize("undisturbed_s", [0.0, 60.0])
def test_answers_are_right_from_the_first_on_while_it_prefaults(
    tmp_path: Path, manifest: Manifest, undisturbed_s: float
) -> None:
    directory = tmp_path / "index"
    expected = _expected(directory)
    index = _open_cold(directory, manifest)
    prefault = threading.Thread(target=index.prefault, kwargs={"undisturbed_s": undisturbed_s})
    prefault.start()
    found = [index.search(QUERIES[n : n + 1], 5)[1][0].tolist() for n in range(len(QUERIES))]
    prefault.join()
    assert found == expected
    assert [index.search(QUERIES[n : n + 1], 5)[1][0].tolist() for n in range(len(QUERIES))] == expected


def test_over_its_budget_only_what_every_query_touches_is_read(
    tmp_path: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "index"
    expected = _expected(directory)
    head = (directory / INDEX_FILE).stat().st_size - PASSAGES * (4 * D + 8)

    def over_budget() -> tuple[IndexVersion, Prefault, int, int]:
        index = _open_cold(directory, manifest)
        before = resident_bytes(directory / PASSAGES_FILE)
        done = index.prefault(budget_bytes=_sizes(directory) // 2)
        read = resident_bytes(directory / PASSAGES_FILE) - before
        return index, done, resident_bytes(directory / INDEX_FILE, stop_bytes=head), read

    with caplog.at_level(logging.WARNING):
        index, done, resident, read = undisturbed(over_budget)
    assert (done.whole, done.size_bytes) == (False, head)
    assert (resident, read) == (head, 0)
    assert "docs/v1 is not prefaulted" in caplog.text
    assert index.search(QUERIES, 5)[1].tolist() == expected


def test_a_budget_of_nothing_reads_nothing_and_answers(tmp_path: Path, manifest: Manifest) -> None:
    expected = _expected(tmp_path / "index")
    index = _open_cold(tmp_path / "index", manifest)
    done = index.prefault(budget_bytes=0)
    assert (done.size_bytes, done.read_bytes, done.whole) == (0, 0, False)
    assert index.search(QUERIES, 5)[1].tolist() == expected


def test_a_file_that_is_gone_is_an_error_and_answers_go_on(tmp_path: Path, manifest: Manifest) -> None:
    expected = _expected(tmp_path / "index")
    index = _open_cold(tmp_path / "index", manifest)
    (tmp_path / "index" / INDEX_FILE).unlink()
    with pytest.raises(IndexVersionError, match=r"into memory: .*index\.faiss"):
        index.prefault()
    assert index.search(QUERIES, 5)[1].tolist() == expected


def _waits(index: faiss.Index, probe: Probe, query: Vectors) -> int:
    """How often a search waited for a page from the disk."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
    with probe.around(query):
        index.search(query, 5)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - before


def test_a_probe_asks_for_whole_lists_rests_and_wakes_when_pages_are_gone(tmp_path: Path, manifest: Manifest) -> None:
    directory = tmp_path / "index"
    _open_cold(directory, manifest)
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(directory / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
    probe = Probe.of(index)
    assert probe is not None
    # Three queries that share no list, so that each finds its lists on the disk.
    probed = index.quantizer.search(QUERIES, NPROBE)[1].tolist()
    apart = [0]
    for number, lists in enumerate(probed):
        if all(set(lists).isdisjoint(probed[other]) for other in apart):
            apart.append(number)
    one, two, three = (QUERIES[n : n + 1] for n in apart[:3])
    pages = min(sum(index.invlists.list_size(n) for n in probed[m]) for m in apart[:3]) * (4 * D + 8) // mmap.PAGESIZE
    assert _waits(index, probe, one) < pages // 4
    probe.rest()
    assert _waits(index, probe, two) > pages // 2, "at rest, pages come one by one"
    assert _waits(index, probe, three) < pages // 4, "it has noticed"


@pytest.mark.parametrize(
    ("recipe", "search_parameters", "probed", "tail"),
    [
        ("Flat", "", False, 0),
        ("HNSW16", "", False, 4 * D),
        ("IVF16,SQ8", "nprobe=4", True, D + 8),
        ("PCA32,IVF16,Flat", "nprobe=4", True, 4 * 32 + 8),
        ("PCA32,IVF16,PQ8,RFlat", "nprobe=4,k_factor_rf=4", True, 8 + 8 + 4 * D),
        ("IVF16,PQ8x4fs", "nprobe=4", False, 4 + 8),
    ],
)
def test_recipes_with_and_without_lists_are_searched_cold(
    tmp_path: Path, recipe: str, search_parameters: str, probed: bool, tail: int
) -> None:
    directory = tmp_path / "index"
    manifest = _write(directory, recipe=recipe, search_parameters=search_parameters, count=2000)
    expected = _expected(directory)
    index = _open_cold(directory, manifest)
    assert index.search(QUERIES, 5)[1].tolist() == expected
    mapped = faiss.read_index(str(directory / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
    assert (Probe.of(mapped) is not None) is probed
    size = (directory / INDEX_FILE).stat().st_size
    assert head_bytes(mapped, size_bytes=size) == size - 2000 * tail


def test_the_head_ends_where_the_first_list_begins(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "index" / INDEX_FILE
    index = faiss.read_index(str(path))
    first = faiss.rev_swig_ptr(index.invlists.get_codes(0), index.invlists.list_size(0) * 4 * D)
    head = head_bytes(index, size_bytes=path.stat().st_size)
    assert path.read_bytes().index(first.tobytes()) == head


def test_what_faiss_has_copied_is_not_mapped_too(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    manifest = _write(directory, recipe="IVF16,PQ8x4fs,RFlat", search_parameters="nprobe=16,k_factor_rf=4", count=4000)
    expected = _expected(directory)
    index = IndexVersion.open(directory, manifest, embedder_digest=None)
    copied, size = copied_bytes(manifest), (directory / INDEX_FILE).stat().st_size
    assert copied > 8 * mmap.PAGESIZE
    assert mapped_kib(directory / INDEX_FILE) * 1024 <= size - copied + 2 * mmap.PAGESIZE
    assert index.search(QUERIES, 5)[1].tolist() == expected
