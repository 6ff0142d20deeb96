"""A catalog on a real directory, and directories to publish."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import ObjectStore, open_store

Tree = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def catalog(store: ObjectStore) -> Catalog:
    return Catalog(store)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write a directory of files: tree({"a.txt": b"..."}, name="other")."""

    def write(files: dict[str, bytes], *, name: str = "source") -> Path:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        for path, content in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        return directory

    return write


@pytest.fixture
def processes() -> ForkContext:
    return multiprocessing.get_context("fork")


@pytest.fixture
def read_only_directory() -> Iterator[Path]:
    """A directory in which this process, no longer root if it was, cannot write."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o555)
        with _ordinary_user():
            yield directory
        directory.chmod(0o755)


@contextmanager
def _ordinary_user() -> Iterator[None]:
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
