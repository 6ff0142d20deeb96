"""What one vector store is, as frozen values: its files, their states, and every change as a step to a new value.

A store counts its changes: each that a search could notice takes the next `generation`. A build indexes the files of
one generation, and when every serving process has it, that is the store's `served` one. So a file that waits is one
whose generation is past `served`, whatever was killed in between.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_stack.config import describe
from rag_stack.errors import ArtifactCorruptError, InvalidRequestError, NotFoundError
from rag_stack.index.format import Chunking
from rag_stack.types import AttributeValue

MAX_FILES: Final = 10_000
# Older batches whose files are all done are forgotten beyond this many.
_MAX_BATCHES: Final = 1_000

Status: TypeAlias = Literal["in_progress", "completed", "cancelled", "failed"]
ErrorCode: TypeAlias = Literal["server_error", "unsupported_file", "invalid_file"]
STATUSES: Final[tuple[Status, ...]] = ("in_progress", "completed", "cancelled", "failed")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileError(_Frozen):
    """Why a file is not in the index, in OpenAI's words and ours."""

    code: ErrorCode
    message: str


class Attachment(_Frozen):
    """What is asked when a file is attached: which one, with which attributes, cut how (None: the default)."""

    file_id: str
    filename: str
    size_bytes: int
    attributes: Mapping[str, AttributeValue] = Field(default_factory=dict)
    chunking: Chunking | None = None


class StoreFile(Attachment):
    """A file of a store. `usage_bytes` is that of its passages' texts once it is indexed.

    One that is `leaving` is no longer shown; it is forgotten once whoever removed it has been told that it is gone.
    """

    created_at: int
    generation: int
    status: Status = "in_progress"
    last_error: FileError | None = None
    usage_bytes: int = 0
    leaving: bool = False


class Batch(_Frozen):
    """Files that were attached together."""

    created_at: int
    file_ids: tuple[str, ...]
    cancelled: bool = False


class Outcome(_Frozen):
    """What became of one file in a build."""

    error: FileError | None = None
    usage_bytes: int = 0


class Store(_Frozen):
    """A vector store. `index_version` is what serves it, None while it has nothing to search."""

    format_version: Literal[1] = 1
    store_id: str
    name: str
    description: str = ""
    metadata: Mapping[str, str] = Field(default_factory=dict)
    created_at: int
    last_active_at: int
    revision: int = 0
    generation: int = 0
    served: int = 0
    index_version: str | None = None
    deleted: bool = False
    files: Mapping[str, StoreFile] = Field(default_factory=dict)
    batches: Mapping[str, Batch] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Read a stored one. Raises ArtifactCorruptError with `where`."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as exc:
            raise ArtifactCorruptError(
                f"{where} is not a vector store's state: {describe(exc)[:500]}; restore it or delete it"
            ) from exc

    @property
    def shown(self) -> list[StoreFile]:
        """The files that the store is said to hold, in the order in which they came."""
        return [file for file in self.files.values() if not file.leaving]

    @property
    def behind(self) -> bool:
        """Whether something was changed that is not served yet."""
        return self.generation > self.served

    @property
    def usage_bytes(self) -> int:
        """Of all files that can be searched."""
        return sum(file.usage_bytes for file in self.shown)

    def file(self, file_id: str) -> StoreFile:
        """A file of this store. Raises NotFoundError."""
        found = self.files.get(file_id)
        if found is None or found.leaving:
            raise NotFoundError(f"the file {file_id!r} is not in the store {self.store_id!r}", param="file_id")
        return found

    def batch(self, batch_id: str) -> Batch:
        """A batch of this store. Raises NotFoundError."""
        if batch_id not in self.batches:
            raise NotFoundError(f"the batch {batch_id!r} is not in the store {self.store_id!r}", param="batch_id")
        return self.batches[batch_id]

    def of_batch(self, batch_id: str) -> list[StoreFile]:
        """The files of a batch that are still in the store. Raises NotFoundError."""
        wanted = self.batch(batch_id).file_ids
        return [file for each in wanted if (file := self.files.get(each)) and not file.leaving]

    def searchable(self, file_id: str) -> bool:
        """Whether a search may show a file: it says `completed`, and nobody has removed it."""
        found = self.files.get(file_id)
        return found is not None and found.status == "completed" and not found.leaving

    def attached(self, asked: Iterable[Attachment], *, batch_id: str | None = None) -> Self:
        """With these files waiting to be indexed; one that was there already is indexed again.

        Raises InvalidRequestError when the store cannot hold them all.
        """
        now, generation = _now(), self.generation + 1
        wanted = {each.file_id: each for each in asked}
        files = {key: file for key, file in self.files.items() if key not in wanted}
        total = sum(not file.leaving for file in files.values()) + len(wanted)
        if total > MAX_FILES:
            raise InvalidRequestError(
                f"the store {self.store_id!r} would hold {total} files, at most {MAX_FILES} are possible; remove some "
                "or use another store",
                param="file_ids" if batch_id else "file_id",
            )
        for key, each in wanted.items():
            files[key] = StoreFile(**each.model_dump(), created_at=now, generation=generation)
        batches = self.batches
        if batch_id is not None:
            batches = {**batches, batch_id: Batch(created_at=now, file_ids=tuple(wanted))}
        changed = self._with(files=files, batches=batches, generation=generation, last_active_at=now)
        return changed._with(batches=changed._kept_batches())

    def described(self, file_id: str, attributes: Mapping[str, AttributeValue]) -> Self:
        """With other attributes on a file; the same again change nothing. Raises NotFoundError."""
        file = self.file(file_id)
        if file.attributes == attributes:
            return self
        generation = self.generation + 1
        file = file.model_copy(update={"attributes": dict(attributes), "generation": generation})
        return self._with(files={**self.files, file_id: file}, generation=generation)

    def detached(self, file_id: str) -> Self:
        """With a file on its way out; again, for one that is already. Raises NotFoundError."""
        if file_id not in self.files:
            self.file(file_id)
        if self.files[file_id].leaving:
            return self
        generation = self.generation + 1
        file = self.files[file_id].model_copy(update={"leaving": True, "generation": generation})
        return self._with(files={**self.files, file_id: file}, generation=generation)

    def forgotten(self, file_id: str) -> Self:
        """Without a file that has left: whoever removed it is told so now."""
        file = self.files.get(file_id)
        if file is None or not file.leaving or file.generation > self.served:
            return self
        return self._with(files={key: each for key, each in self.files.items() if key != file_id})

    def cancelled(self, batch_id: str) -> Self:
        """With those files of a batch that still wait taken out of the work. Raises NotFoundError."""
        waiting = {file.file_id for file in self.of_batch(batch_id) if file.status == "in_progress"}
        if not waiting:
            return self
        generation = self.generation + 1
        update = {"status": "cancelled", "generation": generation}
        files = {key: file.model_copy(update=update) if key in waiting else file for key, file in self.files.items()}
        batch = self.batches[batch_id].model_copy(update={"cancelled": True})
        return self._with(files=files, batches={**self.batches, batch_id: batch}, generation=generation)

    def touched(self) -> Self:
        """With all that it holds to be indexed again; until then its files say what they said."""
        return self._with(generation=self.generation + 1)

    def renamed(
        self, *, name: str | None = None, description: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Self:
        """With another name, description or metadata; None leaves each as it is."""
        update = {"name": name, "description": description, "metadata": metadata}
        return self._with(**{key: value for key, value in update.items() if value is not None})

    def indexed(self, generation: int, version: str | None, outcomes: Mapping[str, Outcome]) -> Self:
        """After a build of the files of `generation`, which every process serves now.

        A file that was changed since then keeps its state: the next build sees to it.
        """
        if generation <= self.served:
            return self
        files = {
            key: _settled(file, outcomes[key]) if key in outcomes and file.generation <= generation else file
            for key, file in self.files.items()
        }
        return self._with(files=files, served=generation, index_version=version, last_active_at=_now())

    def given_up(self, generation: int, message: str) -> Self:
        """With `failed` on the files of `generation` that still wait: they could not be built however often tried.

        What is served stays. A removal or new attributes are not given up: the next build sees to them.
        """
        lost = {
            key: file
            for key, file in self.files.items()
            if file.status == "in_progress" and file.generation <= generation and not file.leaving
        }
        if not lost:
            return self
        update = {"status": "failed", "last_error": FileError(code="server_error", message=message)}
        failed = {key: file.model_copy(update=update) for key, file in lost.items()}
        return self._with(files={**self.files, **failed})

    def _kept_batches(self) -> Mapping[str, Batch]:
        spare = len(self.batches) - _MAX_BATCHES
        if spare <= 0:
            return self.batches
        done = [key for key in self.batches if not any(f.status == "in_progress" for f in self.of_batch(key))]
        dropped = set(done[:spare])
        return {key: batch for key, batch in self.batches.items() if key not in dropped}

    def _with(self, **update: object) -> Self:
        return self.model_copy(update=update)


Step: TypeAlias = Callable[[Store], Store]


def counts(files: Collection[StoreFile]) -> dict[str, int]:
    """How many files there are of each status, and in `total`."""
    found: dict[str, int] = dict.fromkeys(STATUSES, 0)
    for file in files:
        found[file.status] += 1
    return {**found, "total": len(files)}


def _settled(file: StoreFile, outcome: Outcome) -> StoreFile:
    update = {
        "status": "failed" if outcome.error else "completed",
        "last_error": outcome.error,
        "usage_bytes": outcome.usage_bytes,
    }
    return file.model_copy(update=update)


def _now() -> int:
    return int(time.time())
