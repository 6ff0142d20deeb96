"""Where documents lie: a folder, or a prefix of an S3 bucket. Both are listed whole and read file by file."""

import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from rag_stack.artifacts.s3_store import advice, bulk_reader
from rag_stack.errors import ArtifactError, DocumentError, IndexVersionError
from rag_stack.index.pattern import Pattern
from rag_stack.index.spec import Source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from pyarrow.fs import FileInfo, S3FileSystem


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source, by its path in it.

    `described` is what the source's metadata file says of it.
    """

    path: str
    size_bytes: int
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of a source's paths are its documents."""

    include: tuple[Pattern, ...]
    exclude: tuple[Pattern, ...] = ()

    @classmethod
    def of(cls, source: Source) -> "Choice":
        """By a source's patterns."""
        return cls(tuple(map(Pattern.of, source.include)), tuple(map(Pattern.of, source.exclude)))

    def takes(self, path: str) -> bool:
        """Whether a path is included and not excluded."""
        return any(pattern.matches(path) for pattern in self.include) and not self.drops(path)

    def drops(self, path: str) -> bool:
        """Whether a path is excluded."""
        return any(pattern.matches(path) for pattern in self.exclude)


class SourceTree(Protocol):
    """The files of a source. Can be pickled, and used from several threads."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        ...

    def files(self) -> Sequence[SourceFile]:
        """All its files, sorted by path. Blocking. Raises IndexVersionError where the place does not exist.

        Raises ArtifactError when a server fails: a listing that is not whole would look like deletions.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading. Raises DocumentError for one that cannot be read, ArtifactError for a server."""
        ...

    def read(self, path: str) -> bytes:
        """A file's content. Raises as `open` does."""
        ...


def open_source(source: Source) -> SourceTree:
    """The tree of a spec's source; touches nothing yet."""
    choice = Choice.of(source)
    return S3Tree(source.folder.rstrip("/"), choice) if source.remote else FolderTree(Path(source.folder), choice)


@dataclass(frozen=True, slots=True)
class FolderTree:
    """A folder of this machine. Links to folders are not followed, so that a loop of them ends."""

    folder: Path
    choice: Choice

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.folder)

    def files(self) -> Sequence[SourceFile]:
        """As SourceTree says; what cannot be looked at is listed too, so that reading it tells why."""
        if not self.folder.is_dir():
            raise IndexVersionError(f"the source folder {self.url!r} does not exist; create it or mend the spec")
        unreadable: list[SourceFile] = []

        def note(exc: OSError) -> None:
            path = Path(exc.filename).relative_to(self.folder).as_posix()
            if not isinstance(exc, FileNotFoundError) and not self.choice.drops(f"{path}/*"):
                unreadable.append(SourceFile(path, 0))

        found = (
            (Path(folder) / name).relative_to(self.folder).as_posix()
            for folder, _, names in os.walk(self.folder, onerror=note)
            for name in names
        )
        looked_at = [file for path in found if self.choice.takes(path) and (file := self._look_at(path)) is not None]
        return sorted(looked_at + unreadable, key=lambda file: file.path)

    def open(self, path: str) -> BinaryIO:
        """As SourceTree says."""
        with _named():
            return (self.folder / path).open("rb")

    def read(self, path: str) -> bytes:
        """As SourceTree says."""
        with _named():
            return (self.folder / path).read_bytes()

    def _look_at(self, path: str) -> SourceFile | None:
        try:
            status = (self.folder / path).stat()
        except OSError:
            return SourceFile(path, 0)
        # A pipe would block, and a device not end.
        regular = stat.S_ISREG(status.st_mode)
        return SourceFile(path, status.st_size) if regular else None


@dataclass(frozen=True)
class S3Tree:
    """The objects below `s3://bucket/prefix`. Endpoint, region and credentials come from the usual AWS environment."""

    url: str
    choice: Choice
    stall_timeout_s: int = 20
    attempts: int = 8

    def files(self) -> Sequence[SourceFile]:
        """As SourceTree says."""
        from pyarrow.fs import FileSelector, FileType

        try:
            infos: list[FileInfo] = self._fs.get_file_info(FileSelector(self._root, recursive=True))
        except OSError as exc:
            if isinstance(exc, FileNotFoundError) or "NO_SUCH_BUCKET" in str(exc):
                raise IndexVersionError(
                    f"the source {self.url!r} does not exist, or holds nothing; mend the spec or upload the documents"
                ) from exc
            raise ArtifactError(f"cannot list {self.url!r}: {exc}; {advice(exc)}") from exc
        files = (
            SourceFile(info.path[len(self._root) + 1 :], info.size or 0) for info in infos if info.type == FileType.File
        )
        return sorted((file for file in files if self.choice.takes(file.path)), key=lambda file: file.path)

    def open(self, path: str) -> BinaryIO:
        """As SourceTree says; it can be read from any place on."""
        url = f"{self.url}/{path}"
        with _served(url):
            file = self._fs.open_input_file(f"{self._root}/{path}")
        return cast(BinaryIO, _S3File(file, url))

    def read(self, path: str) -> bytes:
        """As SourceTree says."""
        with self.open(path) as file:
            return file.read()

    @property
    def _root(self) -> str:
        return self.url.removeprefix("s3://")

    @cached_property
    def _fs(self) -> "S3FileSystem":
        return bulk_reader(self.stall_timeout_s, self.attempts)

    def __getstate__(self) -> dict[str, Any]:
        # Whoever unpickles it opens a client of its own.
        return {key: value for key, value in self.__dict__.items() if key != "_fs"}


class _S3File(io.RawIOBase):
    """An object whose reads fail as the project's do, whoever reads."""

    def __init__(self, file: Any, url: str) -> None:  # noqa: ANN401 - pyarrow's stubs lack it
        super().__init__()
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        with _served(self._url), memoryview(buffer) as view:
            data = self._file.read(len(view))
            view[: len(data)] = data
            return len(data)

    def readall(self) -> bytes:
        with _served(self._url):
            return bytes(self._file.read())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _named() -> Iterator[None]:
    """A file that cannot be read is a document less."""
    try:
        yield
    except OSError as exc:
        raise DocumentError(exc.strerror or str(exc)) from exc


@contextmanager
def _served(url: str) -> Iterator[None]:
    """A server that fails is another thing than an object that is gone."""
    try:
        yield
    except FileNotFoundError as exc:
        raise DocumentError("No such file or directory") from exc
    except OSError as exc:
        raise ArtifactError(f"cannot read {url!r}: {exc}; {advice(exc)}") from exc
