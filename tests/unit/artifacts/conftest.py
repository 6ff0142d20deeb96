"""A catalog on a real directory, and directories to publish."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import Chunk, digest
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.artifacts.partial import Partial

Tree = Callable[..., Path]
# Small, so that little files have many.
CHUNK_BYTES = 1000


class Source:
    """A directory to fetch from, which counts every chunk that any process reads there."""

    def __init__(self, directory: Path, *, version: str = "v1") -> None:
        self.directory = directory
        self.before: Callable[[Chunk], object] = lambda chunk: None
        paths = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        self.content = {path: (directory / path).read_bytes() for path in paths}
        files = tuple(_entry(path, content) for path, content in self.content.items())
        self.manifest = Manifest(
            kind="models", name="m", version=version, files=files, metadata={}, chunk_bytes=CHUNK_BYTES
        )
        self._log = directory.with_name(f"{directory.name}.log")

    def fill(self, partial: Partial) -> None:
        """As a fetch would, a chunk after the other."""
        for chunk in partial.missing():
            self.before(chunk)
            self.read(partial, chunk)

    def read(self, partial: Partial, chunk: Chunk) -> None:
        """Fetch one chunk."""
        with self._log.open("a") as log:
            log.write(f"{chunk.index}\n")
        with (self.directory / chunk.path).open("rb") as file:
            file.seek(chunk.offset)
            partial.write(chunk, file.read(chunk.size_bytes))

    def chunks_read(self) -> list[int]:
        """The indices of the chunks read so far, by whichever process, sorted."""
        return sorted(map(int, self._log.read_text().splitlines())) if self._log.exists() else []

    def all_chunks(self) -> list[int]:
        """Each chunk's index once."""
        return [chunk.index for chunk in self.manifest.chunks()]

    def is_whole(self, directory: Path) -> bool:
        """Whether a directory holds the files as they were published."""
        return {path: (directory / path).read_bytes() for path in self.content} == self.content


def _entry(path: str, content: bytes) -> FileEntry:
    pieces = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    return FileEntry(path, len(content), tuple(map(digest, pieces)))


@pytest.fixture
def sources(tmp_path: Path) -> Callable[..., Source]:
    """Make an artifact to fetch: sources("v1", {"a": b"..."}), or one file of so many bytes: sources("v1", 5000)."""

    def make(version: str, content: dict[str, bytes] | int) -> Source:
        directory = tmp_path / f"source-{version}"
        files = {"w.bin": os.urandom(content)} if isinstance(content, int) else content
        for path, data in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(data)
        return Source(directory, version=version)

    return make


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(tmp_path / "cache")


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


@pytest.fixture
def ordinary_directory() -> Iterator[Path]:
    """A directory of an ordinary user, whom file modes hold back, and who this process is meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        with _ordinary_user():
            yield Path(name)


@pytest.fixture
def read_only_cache() -> Iterator[Callable[[Callable[[NodeCache], object]], NodeCache]]:
    """Let a cache be filled, then give it to an ordinary user who cannot write anything in it."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as ordinary:
        # Whoever may not write must still be able to come in.
        Path(name).chmod(0o755)

        def make(fill: Callable[[NodeCache], object]) -> NodeCache:
            cache = NodeCache(Path(name))
            fill(cache)
            # What another process would leave: its locks are gone with it.
            folders = [Path(name), *(path for path in Path(name).rglob("*") if path.is_dir())]
            for folder in folders:
                folder.chmod(0o555)
            ordinary.callback(lambda: [folder.chmod(0o755) for folder in folders])
            ordinary.enter_context(_ordinary_user())
            return NodeCache(Path(name))

        yield make
        ordinary.close()


@contextmanager
def _ordinary_user() -> Iterator[None]:
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
