"""The object store on a local or shared file system: every write is atomic and durable, every lock the kernel's."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Final

from fsspec.implementations.local import LocalFileSystem

from rag_stack.artifacts.chunk import Buffer
from rag_stack.artifacts.local_file import exclusive, translated, written
from rag_stack.artifacts.object_store import ObjectEntry, ObjectReader, ObjectStore
from rag_stack.errors import ArtifactBusyError, ArtifactError, PromotionConflictError

_COPY_BYTES: Final = 4 * 1024 * 1024
_LOCK: Final = ".lock"


class FileStore(ObjectStore):
    """Keys are paths below a directory, which the first write creates."""

    has_locks: ClassVar[bool] = True

    def __init__(self, directory: Path) -> None:
        super().__init__(f"file://{directory}", str(directory), open_fs=LocalFileSystem)
        self._directory = directory

    def reader(self, key: str) -> ObjectReader:
        """Open an object for reads of its pieces. Raises ArtifactNotFoundError."""
        with self._reading(key):
            return _FileReader(self._directory / key)

    def local_path(self, key: str) -> Path | None:
        """Where an object is, or would be."""
        return self._directory / key

    def upload(self, path: Path, key: str) -> None:
        """Store a local file under a key."""
        with translated("read", path):
            source = path.open("rb")
        with source, self._translated("write", key), written(self._directory / key) as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store bytes under a key, replacing what is there."""
        with self._translated("write", key), written(self._directory / key) as target:
            target.write(data)

    def create(self, key: str, data: bytes) -> bool:
        """Store bytes under a key that must be free; whether it was. Of several writers exactly one is told so."""
        try:
            self.compare_and_set(key, data, expected=None)
        except PromotionConflictError:
            return False
        return True

    def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
        """Replace an object only if it still holds `expected` (None: only if there is none).

        Of several writers, in any processes, exactly one wins. Raises PromotionConflictError for the others.
        """
        path = self._directory / key
        with self._translated("write", key), written(path) as target:
            current = path.read_bytes() if path.exists() else None
            if current != expected:
                raise PromotionConflictError(f"{self._url(key)!r} was moved by another writer")
            target.write(data)

    def entries(self, prefix: str) -> list[ObjectEntry]:
        """Every object below a prefix, at any depth and whatever its name, sorted; what is a lock is no object."""
        found = []
        with self._translated("list", prefix):
            for folder, _, names in os.walk(self._directory / prefix):
                for path in (Path(folder, name) for name in names if not (name[0] == "." and name.endswith(_LOCK))):
                    # Another process may remove it meanwhile.
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        key = path.relative_to(self._directory).as_posix()
                        found.append(ObjectEntry(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)))
        return sorted(found, key=lambda entry: entry.key)

    @contextmanager
    def exclusive(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold out other processes that would publish under a key. Raises ArtifactBusyError where it does not wait."""
        path = self._directory / key
        with ExitStack() as held:
            with self._translated("lock", key):
                try:
                    held.enter_context(exclusive(path.with_name(f".{path.name}{_LOCK}"), wait=wait))
                except BlockingIOError as exc:
                    raise ArtifactBusyError(f"{self._url(key)!r} is locked by another process") from exc
            yield True

    def local(self, prefix: str) -> Path:
        """The directory that holds a prefix's objects as files."""
        return self._directory / prefix

    def prune(self, prefix: str) -> None:
        """Remove the empty directories of a prefix. A writer that comes meanwhile makes them again."""
        folders = [Path(folder) for folder, _, _ in os.walk(self._directory / prefix, topdown=False)]
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()


class _FileReader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, size_bytes: int) -> Buffer:
        try:
            return os.pread(self._descriptor, size_bytes, offset)
        except OSError as exc:
            raise ArtifactError(f"cannot read {str(self._path)!r}: {exc.strerror}; check the disk") from exc

    def close(self) -> None:
        os.close(self._descriptor)
