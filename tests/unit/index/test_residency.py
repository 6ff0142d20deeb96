"""What of a file is in the page cache, on a real disk."""

import ctypes
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from rag_stack.artifacts.residency import forget, populate, resident_bytes, will_need
from tests.page_cache import mapped_kib, undisturbed

MIB = 1 << 20
SIZE = 24 * MIB + 12_345


def drop(path: Path) -> None:
    """Take a file out of the page cache; skips the test where the file system cannot."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    if resident_bytes(path):
        pytest.skip("this file system lives in memory")


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Path]:
    """A file of SIZE bytes, none of them in memory."""
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    drop(path)
    yield path
    path.unlink()


def test_a_file_is_populated_to_its_last_byte(cold: Path) -> None:
    for _ in range(2):
        assert undisturbed(lambda: (populate(cold), resident_bytes(cold))) == (None, SIZE)


def test_a_head_is_populated_and_counted_alone(cold: Path) -> None:
    head = 9 * MIB + 1
    looked = undisturbed(lambda: (populate(cold, stop_bytes=head), resident_bytes(cold, stop_bytes=head)))
    assert looked == (None, head)
    assert resident_bytes(cold) < SIZE, "the kernel may read some more, even now, not all"
    assert undisturbed(lambda: (populate(cold), resident_bytes(cold, stop_bytes=2 * SIZE))) == (None, SIZE)


def test_what_is_forgotten_is_not_mapped_and_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = np.random.default_rng(0).bytes(SIZE)
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content
        whole = mapped_kib(path)
        forget(path, stop_bytes=9 * MIB + 1)
        # A huge page goes as a whole.
        assert whole - 11 * 1024 < mapped_kib(path) <= whole - 9 * 1024
        assert mapped[:] == content
        forget(path, stop_bytes=2 * SIZE)
        assert mapped_kib(path) <= mmap.PAGESIZE // 1024, "the last page is whole pages only"
    forget(path, stop_bytes=SIZE)


def test_a_cancelled_one_reads_nothing(cold: Path) -> None:
    cancelled = Event()
    cancelled.set()
    populate(cold, cancelled=cancelled)
    assert resident_bytes(cold) == 0


def test_an_empty_file_and_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    populate(tmp_path / "empty")
    assert resident_bytes(tmp_path / "empty") == 0
    with pytest.raises(FileNotFoundError):
        populate(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        resident_bytes(tmp_path)


def test_a_stretch_that_will_be_needed_is_read_though_the_mapping_is_random(cold: Path) -> None:
    with cold.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)
        pages = np.frombuffer(mapping, np.uint8)
        start = 4 * MIB + 77
        will_need(int(pages.ctypes.data) + start, MIB)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        assert pages[start : start + MIB : mmap.PAGESIZE].any()
        # By itself it would have read page by page, 256 times.
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - before < 64
        del pages


def test_advice_about_other_memory_does_nothing() -> None:
    memory = ctypes.create_string_buffer(b"here", 1 << 16)
    will_need(ctypes.addressof(memory), 1 << 16)
    will_need(0, 1 << 16)
    assert memory.value == b"here"
