"""Uploaded files: `files/<id>/content` first, then `files/<id>/file.json`, without which a file does not exist."""

import logging
import secrets
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.config import describe, is_name
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError, NotFoundError

_READERS: Final = 16
# Cards never change, so that a listing reads each once; of more, the least recently used are read again.
_KEPT_CARDS: Final = 20_000
_log = logging.getLogger(__name__)


class UploadedFile(BaseModel):
    """What is known of an uploaded file. It never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_id: str
    filename: str
    size_bytes: int
    purpose: str
    created_at: int


class Files:
    """The uploaded files of an object store. Blocking; what a method returns is on the object store."""

    def __init__(self, object_store: ObjectStore) -> None:
        self._object_store = object_store
        self._cards: OrderedDict[str, UploadedFile] = OrderedDict()
        self._lock = Lock()

    def add(self, path: Path, *, filename: str, purpose: str) -> UploadedFile:
        """Store a local file."""
        file = UploadedFile(
            file_id=f"file-{secrets.token_hex(12)}",
            filename=filename,
            size_bytes=path.stat().st_size,
            purpose=purpose,
            created_at=int(time.time()),
        )
        self._object_store.upload(path, _content_key(file.file_id))
        self._object_store.put_bytes(_card_key(file.file_id), file.model_dump_json().encode())
        return self._keep(file)

    def get(self, file_id: str) -> UploadedFile:
        """A file. Raises NotFoundError."""
        if not is_name(file_id):
            raise _missing(file_id)
        key = _card_key(file_id)
        try:
            data = self._object_store.read_bytes(key)
        except ArtifactNotFoundError as exc:
            with self._lock:
                self._cards.pop(file_id, None)
            raise _missing(file_id) from exc
        try:
            return self._keep(UploadedFile.model_validate_json(data))
        except ValidationError as exc:
            where = f"{self._object_store.url}/{key}"
            raise ArtifactCorruptError(f"{where} is not an uploaded file's: {describe(exc)}; upload it again") from exc

    def several(self, file_ids: list[str]) -> list[UploadedFile]:
        """Files, in this order. Raises NotFoundError for the first that is not there."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="files") as readers:
            return list(readers.map(self.get, file_ids))

    def all(self, *, purpose: str | None = None) -> list[UploadedFile]:
        """Every file, or those of one purpose, oldest first. One whose card is damaged is logged and left out."""
        names = [name for name in self._object_store.list_names("files") if is_name(name)]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="files") as readers:
            found = [file for file in readers.map(self._listed, names) if file is not None]
        found = [file for file in found if purpose is None or file.purpose == purpose]
        return sorted(found, key=lambda file: (file.created_at, file.file_id))

    def content(self, file_id: str) -> bytes:
        """The bytes of a file. Raises NotFoundError."""
        with self.open(file_id) as stream:
            return stream.read()

    def open(self, file_id: str) -> BinaryIO:
        """A file's bytes as a stream. Raises NotFoundError."""
        self.get(file_id)
        try:
            return self._object_store.open(_content_key(file_id))
        except ArtifactNotFoundError as exc:
            raise _missing(file_id) from exc

    def delete(self, file_id: str) -> None:
        """Remove a file. Raises NotFoundError."""
        self.get(file_id)
        self._object_store.delete(_card_key(file_id))
        self._object_store.delete(_content_key(file_id))
        with self._lock:
            self._cards.pop(file_id, None)

    def _listed(self, file_id: str) -> UploadedFile | None:
        with self._lock:
            if file_id in self._cards:
                self._cards.move_to_end(file_id)
                return self._cards[file_id]
        try:
            return self.get(file_id)
        except NotFoundError:
            return None
        except ArtifactCorruptError as exc:
            _log.error("%s", exc.message)
            return None

    def _keep(self, file: UploadedFile) -> UploadedFile:
        with self._lock:
            self._cards[file.file_id] = file
            if len(self._cards) > _KEPT_CARDS:
                self._cards.popitem(last=False)
        return file


def _missing(file_id: str) -> NotFoundError:
    return NotFoundError(f"the file {file_id!r} does not exist", param="file_id")


def _card_key(file_id: str) -> str:
    return f"files/{file_id}/file.json"


def _content_key(file_id: str) -> str:
    return f"files/{file_id}/content"
