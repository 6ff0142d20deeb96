"""Where artifacts live: keys below the root of any fsspec URL."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Protocol, cast

from fsspec.core import url_to_fs

from rag_stack.artifacts.chunk import Buffer
from rag_stack.artifacts.local_file import translated
from rag_stack.errors import ArtifactError, ArtifactNotFoundError

_MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_CLOCK: Final = ".clock"


class ObjectReader(Protocol):
    """Reads pieces of one object; several threads may read at once. `size_bytes` is the object's."""

    size_bytes: int

    def read_at(self, offset: int, size_bytes: int) -> Buffer: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """An object as a listing shows it; `modified_at` is UTC by the store's clock."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStore:
    """Bytes under keys such as `models/<name>/<version>/config.json`, through fsspec.

    Every failure of the storage is an ArtifactError that names the URL. Open one with `open_store`; nothing is asked of
    the storage before it is needed.
    """

    # Whether `exclusive` knows who else is there.
    has_locks: ClassVar[bool] = False

    def __init__(self, url: str, root: str, *, open_fs: Callable[[], Any]) -> None:
        self.url = url
        self._open_fs = open_fs
        self._root = root.rstrip("/")

    @cached_property
    def _fs(self) -> Any:  # noqa: ANN401 - fsspec is untyped
        return self._open_fs()

    def read_bytes(self, key: str) -> bytes:
        """A whole object. Raises ArtifactNotFoundError."""
        with self._reading(key):
            return cast(bytes, self._fs.cat_file(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        """Open an object for streaming. Raises ArtifactNotFoundError."""
        with self._reading(key):
            return cast(BinaryIO, self._fs.open(self._path(key), "rb"))

    def reader(self, key: str) -> ObjectReader:
        """Open an object for reads of its pieces. Raises ArtifactNotFoundError."""
        with self._reading(key):
            return _FsspecReader(self._fs, self._path(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object under a key."""
        with self._translated("look at", key):
            return bool(self._fs.isfile(self._path(key)))

    def list_names(self, prefix: str) -> list[str]:
        """The names directly below a prefix, sorted; none when there is no such prefix."""
        try:
            with self._translated("list", prefix):
                paths = cast(list[str], self._fs.ls(self._path(prefix), detail=False))
        except ArtifactError as exc:
            if isinstance(exc.__cause__, (FileNotFoundError, NotADirectoryError)):
                return []
            raise
        names = {path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != self._path(prefix)}
        return sorted(name for name in names if name and not name.startswith("."))

    def entries(self, prefix: str) -> list[ObjectEntry]:
        """Every object below a prefix, at any depth and whatever its name, sorted; none when there is no prefix."""
        with self._translated("list", prefix):
            found = cast(dict[str, dict[str, Any]], self._fs.find(self._path(prefix), detail=True))
        root = f"{self._root}/"
        # SeaweedFS lists a folder for a while after the last object in it is gone.
        files = {path: info for path, info in found.items() if info.get("type") != "directory"}
        listed = [ObjectEntry(path.removeprefix(root), int(info["size"]), _time(info)) for path, info in files.items()]
        return sorted(listed, key=lambda entry: entry.key)

    def modified_at(self, key: str) -> datetime:
        """When an object was written, by the store's clock, which may tell it in whole seconds.

        Raises ArtifactNotFoundError.
        """
        with self._reading(key):
            return _time(self._fs.info(self._path(key)))

    def now(self) -> datetime:
        """The store's time, told by an object that is written for it."""
        self.put_bytes(_CLOCK, b"")
        return self.modified_at(_CLOCK)

    def upload(self, path: Path, key: str) -> None:
        """Store a local file under a key, in parts where it is large."""
        with translated("read", path):
            path.open("rb").close()
        with self._translated("write", key):
            self._put_file(path, key)

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store bytes under a key, replacing what is there."""
        with self._translated("write", key):
            self._fs.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Store bytes under a key that must be free; whether it was. Only `file://` and S3 are exact about it."""
        if self.exists(key):
            return False
        self.put_bytes(key, data)
        return True

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        try:
            with self._translated("delete", key):
                self._fs.rm_file(self._path(key))
        except ArtifactError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise

    def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
        """Replace an object only if it still holds `expected` (None: only if there is none).

        Of several writers, in any processes, exactly one wins. Raises PromotionConflictError for the others.
        """
        raise ArtifactError(
            f"cannot replace {self._url(key)!r} on a condition ({len(data)} bytes for {len(expected or b'')}): only "
            "file:// and s3:// can; keep the artifacts on one of them, or name every version in the release and "
            "promote nothing"
        )

    def exclusive(self, key: str, *, wait: bool = True) -> AbstractContextManager[bool]:  # noqa: ARG002 - subclass
        """Hold out other processes that would publish under a key, and say whether that is sure: on `file://` only.

        Raises ArtifactBusyError when another one is there, and it is not to be waited for.
        """
        return nullcontext(enter_result=False)

    def local(self, prefix: str) -> Path | None:  # noqa: ARG002 - the subclass needs it
        """The directory of this machine that holds a prefix's objects as files: on `file://` only."""
        return None

    def prune(self, prefix: str) -> None:
        """Remove what an empty prefix may leave: nothing, but on `file://` its directories."""

    def _put_file(self, path: Path, key: str) -> None:
        self._fs.put_file(str(path), self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _url(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _translated(self, action: str, key: str) -> AbstractContextManager[None]:
        return translated(action, self._url(key))

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            with self._translated("read", key):
                yield
        except ArtifactError as exc:
            if isinstance(exc.__cause__, _MISSING):
                raise ArtifactNotFoundError(f"no object {self._url(key)!r}") from exc.__cause__
            raise


def _time(info: Mapping[str, Any]) -> datetime:
    """The time of an object, which every file system of fsspec calls something else."""
    found = next((info[name] for name in ("LastModified", "mtime", "last_modified", "created") if info.get(name)), None)
    if isinstance(found, datetime):
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    raise ArtifactError(f"the storage does not say when {info.get('name')!r} was written; use file:// or s3://")


class _FsspecReader:
    def __init__(self, fs: Any, path: str) -> None:  # noqa: ANN401
        self._fs = fs
        self._path = path
        self.size_bytes = int(fs.info(path)["size"])

    def read_at(self, offset: int, size_bytes: int) -> Buffer:
        return cast(bytes, self._fs.cat_file(self._path, start=offset, end=offset + size_bytes))

    def close(self) -> None:
        """Nothing is held between reads."""


def open_store(root_url: str) -> ObjectStore:
    """The object store at a URL: `s3://bucket/prefix`, `file:///directory`, or anything else that fsspec opens.

    `file://./relative` and plain paths are below the current directory; the root is created by the first write.
    Raises ArtifactError for a URL that is none, or whose client is not installed.
    """
    if not root_url:
        raise ArtifactError("the object store's root is empty; expected a URL such as file://./var/artifacts")
    try:
        if root_url.startswith("s3://"):
            from rag_stack.artifacts.s3_store import S3Store

            return S3Store(root_url)
        if "::" in root_url or ("://" in root_url and not root_url.startswith("file://")):
            url = root_url.rstrip("/")
            fs, root = url_to_fs(url, use_listings_cache=False)
            return ObjectStore(url, root, open_fs=lambda: fs)
    except (ValueError, ImportError) as exc:
        raise ArtifactError(f"cannot use {root_url!r} as an object store: {exc}") from exc
    from rag_stack.artifacts.file_store import FileStore

    return FileStore(Path(root_url.removeprefix("file://")).expanduser().absolute())
