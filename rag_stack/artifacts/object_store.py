"""Where artifacts live: keys below the root of any fsspec URL."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fsspec.core import url_to_fs

from rag_stack.artifacts.local_file import exclusive, translated, written
from rag_stack.errors import ArtifactError, ArtifactNotFoundError, PromotionConflictError

_COPY_BYTES = 4 * 1024 * 1024


class ObjectStore:
    """Bytes under keys such as `models/<name>/<version>/config.json`.

    On `file://` every write is atomic and durable; `file://./relative` is below the current directory, and the root is
    created by the first write. Every failure of the storage is an ArtifactError that names the URL.
    """

    def __init__(self, root_url: str) -> None:
        self._directory = _local_directory(root_url)
        self.url = root_url.rstrip("/") if self._directory is None else f"file://{self._directory}"
        try:
            self._fs, self._root = url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as exc:
            raise ArtifactError(f"cannot use {root_url!r} as an object store: {exc}") from exc

    def open(self, key: str) -> BinaryIO:
        """Open an object for streaming. Raises ArtifactNotFoundError."""
        try:
            with translated("read", self._url(key)):
                return cast(BinaryIO, self._fs.open(self._path(key), "rb"))
        except ArtifactError as exc:
            if isinstance(exc.__cause__, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
                raise ArtifactNotFoundError(f"no object {self._url(key)!r}") from exc.__cause__
            raise

    def read_bytes(self, key: str) -> bytes:
        """A whole object. Raises ArtifactNotFoundError."""
        with self.open(key) as file, translated("read", self._url(key)):
            return file.read()

    def exists(self, key: str) -> bool:
        """Whether there is an object under a key."""
        with translated("look at", self._url(key)):
            return bool(self._fs.isfile(self._path(key)))

    def list_names(self, prefix: str) -> list[str]:
        """The names directly below a prefix, sorted; none when there is no such prefix."""
        try:
            with translated("list", self._url(prefix)):
                paths = cast(list[str], self._fs.ls(self._path(prefix), detail=False))
        except ArtifactError as exc:
            if isinstance(exc.__cause__, (FileNotFoundError, NotADirectoryError)):
                return []
            raise
        names = {path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != self._path(prefix)}
        return sorted(name for name in names if name and not name.startswith("."))

    def upload(self, path: Path, key: str) -> None:
        """Store a local file under a key."""
        with translated("read", path):
            source = path.open("rb")
        with source, translated("write", self._url(key)):
            if self._directory is None:
                self._fs.put_file(str(path), self._path(key))
                return
            with written(self._directory / key) as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store bytes under a key, replacing what is there."""
        with translated("write", self._url(key)):
            if self._directory is None:
                self._fs.pipe_file(self._path(key), data)
                return
            with written(self._directory / key) as target:
                target.write(data)

    def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
        """Replace an object only if it still holds `expected` (None: only if there is none).

        Of several writers, in any processes, exactly one wins. Raises PromotionConflictError for the others.
        """
        if self._directory is None:
            raise ArtifactError(
                f"cannot promote on {self.url!r}: this release promotes on file:// only, other stores come with a "
                "later one; keep the artifacts below a file:// root"
            )
        path = self._directory / key
        with translated("write", self._url(key)), written(path) as target:
            current = path.read_bytes() if path.exists() else None
            if current != expected:
                raise PromotionConflictError(
                    f"{self._url(key)!r} was moved by another writer; look at what is promoted now and promote again"
                )
            target.write(data)

    @contextmanager
    def exclusive(self, key: str) -> Iterator[None]:
        """Hold out others that would publish under a key; only `file://` can."""
        if self._directory is None:
            yield
            return
        path = self._directory / key
        with ExitStack() as held:
            with translated("lock", self._url(key)):
                held.enter_context(exclusive(path.with_name(f".{path.name}.lock")))
            yield

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def _url(self, key: str) -> str:
        return f"{self.url}/{key}"


def _local_directory(root_url: str) -> Path | None:
    """The absolute directory of a `file://` URL or plain path; None for any other protocol."""
    if not root_url:
        raise ArtifactError("the object store's root is empty; expected a URL such as file://./var/artifacts")
    if "::" in root_url or ("://" in root_url and not root_url.startswith("file://")):
        return None
    return Path(root_url.removeprefix("file://")).expanduser().absolute()
