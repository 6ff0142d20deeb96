"""Local files are whole or absent, whatever happens to their writers."""

import os
import resource
import signal
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.local_file import exclusive, translated, written
from rag_stack.errors import ArtifactError


def fail_after(written_bytes: int) -> None:
    raise RuntimeError(written_bytes)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_failed_writer_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with written(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), written(path) as file:
        fail_after(file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["file"]


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path, processes: ForkContext) -> None:
    path, half_written, never = tmp_path / "file", processes.Event(), processes.Event()

    def write_half() -> None:
        with written(path) as file:
            file.write(b"a long half of the content")
            file.flush()
            half_written.set()
            never.wait()

    writer = processes.Process(target=write_half)
    writer.start()
    assert half_written.wait(30)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(30)
    assert not path.exists()

    with written(path) as file:
        file.write(b"short")
    assert path.read_bytes() == b"short"
    assert names(tmp_path) == ["file"]


def test_writers_of_one_file_take_turns(tmp_path: Path, processes: ForkContext) -> None:
    path, start = tmp_path / "file", processes.Barrier(4)

    def write(letter: bytes) -> None:
        start.wait(30)
        for _ in range(50):
            with written(path) as file:
                file.write(letter * 100_000)

    writers = [processes.Process(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    content = path.read_bytes()
    assert content == content[:1] * 100_000
    assert names(tmp_path) == ["file"]


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path: Path, processes: ForkContext) -> None:
    lock, counter, start = tmp_path / "lock", tmp_path / "counter", processes.Barrier(3)
    counter.write_text("0")

    def count() -> None:
        start.wait(30)
        for _ in range(200):
            with exclusive(lock):
                counter.write_text(str(int(counter.read_text()) + 1))

    counters = [processes.Process(target=count) for _ in range(3)]
    for process in counters:
        process.start()
    for process in counters:
        process.join(60)
    assert counter.read_text() == "600"
    assert not lock.exists()


def test_a_write_that_does_not_fit_says_where_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "file"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        expected = pytest.raises(ArtifactError, match=r"cannot write .*file.*: File too large; raise the limit")
        with expected, translated("write", path), written(path) as file:
            file.write(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []
