"""The directory that a build writes in, beside other builds that begin and clear away."""

import shutil
from pathlib import Path

import pytest

from rag_stack.artifacts.local_file import open_locked
from rag_stack.jobs import scratch as module
from rag_stack.jobs.scratch import scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_directory_is_there_and_goes(temporary: Path) -> None:
    with scratch() as folder:
        assert folder.parent == temporary
        (folder / "index.faiss").write_bytes(b"x")
        with scratch() as other:
            assert other != folder
        assert (folder / "index.faiss").exists(), "what a living build writes is left alone"
    assert list(temporary.iterdir()) == []


def test_what_a_killed_build_has_left_goes(temporary: Path) -> None:
    left = temporary / "rag-stack-index-left"
    left.mkdir()
    (left / ".lock").touch()
    with scratch():
        assert not left.exists()


def test_one_that_is_taken_for_abandoned_before_its_lock_is_held_is_made_anew(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build comes between the making of the lock's file and the lock: no test can come there by itself."""
    lost: list[Path] = []

    def late(path: Path, *, blocking: bool = True) -> int | None:
        if not lost:
            lost.append(path.parent)
            shutil.rmtree(path.parent)
        return open_locked(path, blocking=blocking)

    monkeypatch.setattr(module, "open_locked", late)
    with scratch() as folder:
        assert folder.is_dir()
        assert folder not in lost
