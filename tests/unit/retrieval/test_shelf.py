"""A version in the place of another while it is read: leases, memory, mappings, pins."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.pin import is_pinned
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import (
    ArtifactError,
    EmbedderMismatchError,
    IndexTooLargeError,
    IndexVersionError,
    NotFoundError,
    StoreLimitError,
    UnavailableError,
)
from rag_stack.index.documents import Document
from rag_stack.index.gpu_memory import GpuMemory
from rag_stack.metrics import INDEX_SEARCHES, SWAP_SECONDS, MemoryRecorder
from rag_stack.retrieval.preparation import Preparation, check_room
from rag_stack.retrieval.shelf import Shelf
from tests.embedder import WordEmbedder
from tests.host_device import FullDevice, HostDevice
from tests.layer import TOWN, publish_index

WAIT_S = 30.0
EMBEDDER = WordEmbedder()


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    return open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
def shelf(tiers: Tiers, recorder: MemoryRecorder) -> Iterator[Shelf]:
    made = Shelf(Preparation(tiers, recorder, embedder_digest=EMBEDDER.digest), max_stores=2)
    yield made
    for name in made.names():
        made.drop(name)
    assert made.wait_unmapped(WAIT_S)


def version(tiers: Tiers, tmp_path: Path, text: str, **changes: Any) -> Manifest:
    """A published version of the index "town" in which every passage carries a text."""
    documents = [Document(f"{d.document_id}", f"{text}: {d.text}", d.title, d.uri) for d in TOWN]
    return publish_index(tiers.catalog, tmp_path / text, documents, embedder=EMBEDDER, name="town", **changes)


def mapped(tiers: Tiers, manifest: Manifest) -> list[str]:
    """The files of a version that this process has mapped from a cache, as the kernel sees it."""
    directory = str(tiers.cache.directory / "artifacts" / manifest.hex)
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split("/")[-1] for line in lines if directory in line]


def pinned(tiers: Tiers, manifest: Manifest) -> bool:
    return is_pinned(tiers.cache.directory / "pins" / manifest.hex)


def swap(shelf: Shelf, manifest: Manifest) -> None:
    shelf.flip(shelf.prepare("town", manifest))


def test_a_store_is_not_open_yet_until_it_is_known_to_be_empty(shelf: Shelf, tiers: Tiers, tmp_path: Path) -> None:
    shelf.add("town")
    with shelf.lease("town") as opened:
        assert (opened.index, opened.version, opened.empty) == (None, "", False)
    assert shelf.state()["town"].version == ""
    shelf.flip(shelf.prepare_empty("town"))
    with shelf.lease("town") as opened:
        assert (opened.index, opened.version, opened.empty) == (None, "", True)
    swap(shelf, version(tiers, tmp_path, "first"))
    with shelf.lease("town") as opened:
        assert opened.index is not None
    assert not shelf.is_empty("town")
    shelf.flip(shelf.prepare_empty("town"))
    assert shelf.is_empty("town")
    assert shelf.wait_unmapped(10)


def test_an_unknown_store_is_told_which_there_are(shelf: Shelf) -> None:
    shelf.add("town")
    with pytest.raises(NotFoundError, match=r"'village' does not exist; there are \['town'\]"), shelf.lease("village"):
        pass


def test_new_leases_get_the_new_version_and_running_ones_keep_theirs(
    shelf: Shelf, tiers: Tiers, tmp_path: Path
) -> None:
    first, second = version(tiers, tmp_path, "first"), version(tiers, tmp_path, "second")
    shelf.add("town")
    swap(shelf, first)
    with shelf.lease("town") as old:
        prepared = shelf.prepare("town", second)
        assert shelf.state()["town"].prepared == second.version
        with shelf.lease("town") as still:
            assert still.version == first.version
        shelf.flip(prepared)
        with shelf.lease("town") as new:
            assert new.version == second.version
            assert new.index is not None
            assert new.index.passages.get(0).text.startswith("second: ")
        assert old.index is not None
        assert old.index.passages.get(0).text.startswith("first: ")
        assert shelf.state()["town"].retired == 1
        assert not shelf.wait_unmapped(0.0)
    assert shelf.wait_unmapped(WAIT_S)
    assert shelf.state()["town"].retired == 0


def test_after_its_last_reader_a_version_is_unmapped_and_its_pin_released(
    shelf: Shelf, tiers: Tiers, tmp_path: Path
) -> None:
    first, second = version(tiers, tmp_path, "first"), version(tiers, tmp_path, "second")
    shelf.add("town")
    swap(shelf, first)
    assert {"index.faiss", "passages.arrow"} <= set(mapped(tiers, first))
    with shelf.lease("town") as opened:
        swap(shelf, second)
        assert opened.index is not None
        opened.index.search(EMBEDDER.encode(["lighthouse"]), 1)
        assert mapped(tiers, first)
        assert pinned(tiers, first)
    assert shelf.wait_unmapped(WAIT_S)
    index = opened.index
    del opened
    assert mapped(tiers, first) == []
    assert not pinned(tiers, first)
    assert pinned(tiers, second)
    with pytest.raises(IndexVersionError, match="is closed"):
        index.search(EMBEDDER.encode(["lighthouse"]), 1)


def test_every_search_of_many_threads_is_in_one_version_only(shelf: Shelf, tiers: Tiers, tmp_path: Path) -> None:
    versions = [version(tiers, tmp_path, text) for text in ("first", "second")]
    texts = dict(zip((each.version for each in versions), ("first", "second"), strict=True))
    shelf.add("town")
    swap(shelf, versions[0])
    stop, wrong, seen = threading.Event(), [], set()
    started = threading.Semaphore(0)

    def read() -> None:
        query = EMBEDDER.encode(["the lighthouse of Alden"])
        while not stop.is_set():
            with shelf.lease("town") as opened:
                assert opened.index is not None
                _, rows = opened.index.search(query, 3)
                found = [opened.index.passages.get(int(row)).text for row in rows.ravel()]
                if not all(text.startswith(texts[opened.version]) for text in found):
                    wrong.append((opened.version, found))
                seen.add(opened.version)
            started.release()

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(20):
            assert started.acquire(timeout=WAIT_S)
            swap(shelf, versions[(turn + 1) % 2])
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert seen == texts.keys()
    assert shelf.wait_unmapped(WAIT_S)


def test_one_version_waits_at_most_and_what_was_discarded_never_serves(
    shelf: Shelf, tiers: Tiers, tmp_path: Path
) -> None:
    first, second = version(tiers, tmp_path, "first"), version(tiers, tmp_path, "second")
    shelf.add("town")
    early = shelf.prepare("town", first)
    late = shelf.prepare("town", second)
    shelf.flip(early)
    assert shelf.state()["town"].version == ""
    shelf.discard(late)
    shelf.flip(late)
    assert shelf.state()["town"].version == ""
    assert shelf.wait_unmapped(WAIT_S)
    assert mapped(tiers, first) == []
    assert mapped(tiers, second) == []
    assert not pinned(tiers, second)


def test_a_dropped_store_is_unmapped_and_cannot_be_prepared(shelf: Shelf, tiers: Tiers, tmp_path: Path) -> None:
    first = version(tiers, tmp_path, "first")
    shelf.add("town")
    swap(shelf, first)
    shelf.drop("town")
    shelf.drop("town")
    assert shelf.wait_unmapped(WAIT_S)
    assert mapped(tiers, first) == []
    assert "town" not in shelf
    with pytest.raises(NotFoundError):
        shelf.prepare("town", first)


def test_more_stores_than_the_limit_are_refused(shelf: Shelf) -> None:
    shelf.add("a")
    shelf.add("b")
    shelf.add("b")
    with pytest.raises(StoreLimitError, match=r"2 stores are open.*`swap.max_stores`"):
        shelf.add("c")


def test_a_version_of_another_embedder_is_refused_and_leaves_nothing(
    shelf: Shelf, tiers: Tiers, tmp_path: Path
) -> None:
    other = version(tiers, tmp_path, "other", digest="sha256:" + "0" * 64)
    shelf.add("town")
    with pytest.raises(EmbedderMismatchError):
        shelf.prepare("town", other)
    assert mapped(tiers, other) == []
    assert not pinned(tiers, other)
    assert shelf.state()["town"].prepared is None


def test_a_damaged_version_is_refused_and_leaves_nothing(shelf: Shelf, tiers: Tiers, tmp_path: Path) -> None:
    damaged = version(tiers, tmp_path, "damaged")
    path = tiers.ensure_local(damaged).path / "index.faiss"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    # The vectors end the file: now they are not finite, and FAISS finds none of them.
    data[-3 * 4096 :] = b"\xff" * 3 * 4096
    path.write_bytes(data)
    shelf.add("town")
    with pytest.raises((IndexVersionError, ArtifactError), match=r"not finite|finds nothing|scores up to"):
        shelf.prepare("town", damaged)
    assert mapped(tiers, damaged) == []


def test_what_a_swap_took_is_told_by_stage(
    shelf: Shelf, tiers: Tiers, tmp_path: Path, recorder: MemoryRecorder
) -> None:
    shelf.add("town")
    swap(shelf, version(tiers, tmp_path, "first"))
    for stage in ("fetch", "open", "prefault", "try out"):
        assert len(recorder.values(SWAP_SECONDS, {"stage": stage})) == 1


def test_a_shelf_that_prepares_nothing_says_so(tiers: Tiers, tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.add("town")
    with pytest.raises(UnavailableError):
        shelf.prepare("town", version(tiers, tmp_path, "first"))


def test_files_are_page_cache_unless_both_versions_shall_stay_in_memory(tiers: Tiers, tmp_path: Path) -> None:
    manifest = version(tiers, tmp_path, "first")
    check_room(manifest, beside=None, free_bytes=0)
    with pytest.raises(IndexTooLargeError, match=r"0\.000 GB that each process copies \+ .* of its files \+ 2\.000 GB"):
        check_room(manifest, beside=2_000_000_000, free_bytes=2_000_000_000)
    check_room(manifest, beside=2_000_000_000, free_bytes=3_000_000_000)


def test_what_fastscan_copies_must_fit(tiers: Tiers, tmp_path: Path) -> None:
    manifest = version(tiers, tmp_path, "first")
    metadata = {**manifest.metadata, "recipe": "IVF64,PQ32x4fs"}
    packed = Manifest(kind="indexes", name="town", version="packed", files=manifest.files, metadata=metadata)
    size = next(entry.size_bytes for entry in manifest.files if entry.path == "index.faiss")
    check_room(packed, beside=None, free_bytes=2 * size)
    with pytest.raises(IndexTooLargeError, match=r"80% of"):
        check_room(packed, beside=None, free_bytes=size)


def test_a_swap_copies_to_the_device_and_frees_the_old_after_its_last_reader(
    tiers: Tiers, recorder: MemoryRecorder, tmp_path: Path
) -> None:
    gpu = GpuMemory(HostDevice(), budget_bytes=1 << 30, stores=1, recorder=recorder)
    shelf = Shelf(Preparation(tiers, recorder, embedder_digest=EMBEDDER.digest, gpu=gpu))
    first, second = version(tiers, tmp_path, "first"), version(tiers, tmp_path, "second")
    question = EMBEDDER.encode(["tower"])
    shelf.add("town")
    swap(shelf, first)
    assert str(gpu).startswith("1 on the device")
    with shelf.lease("town") as old:
        swap(shelf, second)
        assert str(gpu).startswith("2 on the device")
        assert old.index is not None
        old.index.search(question, 2)
        with shelf.lease("town") as new:
            assert new.index is not None
            found = new.index.search(question, 2)
            some = np.ones(new.index.ntotal, np.bool_)
            assert found[1].tolist() == new.index.search(question, 2, allowed=some)[1].tolist()
        # Two without a filter, one with.
        assert len(recorder.values(INDEX_SEARCHES, {"place": "device"})) == 2
        assert len(recorder.values(INDEX_SEARCHES, {"place": "host"})) == 1
    assert shelf.wait_unmapped(WAIT_S)
    assert str(gpu).startswith("1 on the device")
    assert recorder.values(SWAP_SECONDS, {"stage": "place"})
    shelf.drop("town")
    assert shelf.wait_unmapped(WAIT_S)
    assert str(gpu).startswith("0 on the device, 0.000")


def test_a_device_that_refuses_keeps_no_version_from_serving(
    tiers: Tiers, recorder: MemoryRecorder, tmp_path: Path
) -> None:
    gpu = GpuMemory(FullDevice(), budget_bytes=1 << 30, stores=1, recorder=recorder)
    shelf = Shelf(Preparation(tiers, recorder, embedder_digest=EMBEDDER.digest, gpu=gpu))
    shelf.add("town")
    swap(shelf, version(tiers, tmp_path, "first"))
    with shelf.lease("town") as opened:
        assert opened.index is not None
        assert opened.index.search(EMBEDDER.encode(["tower"]), 2)[1].shape == (1, 2)
    shelf.drop("town")
    assert shelf.wait_unmapped(WAIT_S)
