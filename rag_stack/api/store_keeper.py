"""What the handlers of stores and of their files share: one keeper of the stores made over HTTP."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from rag_stack.api.store_encoding import ChunkingLimits
from rag_stack.errors import InvalidRequestError, NotFoundError, UnavailableError
from rag_stack.protocol import ChunkingStrategy, VectorStoreFileCreate
from rag_stack.stores.files import Files
from rag_stack.stores.ingest import Ingest
from rag_stack.stores.parsing import UnreadableFileError, parse_upload
from rag_stack.stores.register import Register
from rag_stack.stores.store import Attachment, Step, Store, StoreFile
from rag_stack.types import AttributeValue

# The official client asks again after a 503, and gives up a request of its own after minutes only.
WAIT_S = 30.0
# Every file of an index has these attributes; a search would show what was given, and filter by what is there.
_GIVEN = frozenset({"path", "filename"})


@dataclass(frozen=True, slots=True)
class StoreKeeper:
    """Reads and changes stores for handlers. `released` gives the stores of the release, which cannot be changed."""

    register: Register
    files: Files
    ingest: Ingest
    chunking: ChunkingLimits
    released: Callable[[], Collection[str]]
    wait_s: float = WAIT_S

    async def get(self, request: Request) -> Store:
        """The store that a request names. Raises NotFoundError."""
        self._check_made(request)
        return await asyncio.to_thread(self.register.get, _name(request))

    async def change(self, request: Request, step: Step) -> Store:
        """Take a step with the store that a request names; what must be built for it is."""
        self._check_made(request)
        store = await asyncio.to_thread(self.register.change, _name(request), step)
        if store.behind:
            self.ingest.wake(store.store_id)
        return store

    async def settled(self, store: Store, generation: int) -> None:
        """Wait until every serving process has a change. Raises UnavailableError."""
        await self.ingest.settled(store.store_id, generation, timeout_s=self.wait_s)

    async def create(
        self, *, name: str, description: str, metadata: Mapping[str, str], attachments: Iterable[Attachment]
    ) -> Store:
        """A new store."""
        asked = list(attachments)
        store = await asyncio.to_thread(
            lambda: self.register.create(name=name, description=description, metadata=metadata, attachments=asked)
        )
        await self.ingest.open(store.store_id)
        if store.behind:
            self.ingest.wake(store.store_id)
        return store

    async def delete(self, request: Request) -> str:
        """Delete the store that a request names; its id. Raises NotFoundError or UnavailableError."""
        self._check_made(request)
        await self.ingest.delete(_name(request), timeout_s=self.wait_s)
        return _name(request)

    async def remove_file(self, store_id: str, file_id: str) -> None:
        """Take a file out of a store, and wait until no search finds it. Raises NotFoundError or UnavailableError."""
        store = await asyncio.to_thread(self.register.change, store_id, lambda now: now.detached(file_id))
        await self.settled(store, store.files[file_id].generation)
        # Only now: a client that was answered 503 and asks again must not be told that there is no such file.
        await asyncio.to_thread(self.register.change, store_id, lambda now: now.forgotten(file_id))

    async def remove_everywhere(self, file_id: str) -> bool:
        """Take a file out of all stores; whether every serving process has that already."""
        stores = [store for store in await asyncio.to_thread(self.register.all) if file_id in store.files]
        removals = [self.remove_file(store.store_id, file_id) for store in stores]
        results = await asyncio.gather(*removals, return_exceptions=True)
        for result in results:
            # A store or file that somebody else removes at the same time is as gone as it should be.
            if isinstance(result, BaseException) and not isinstance(result, NotFoundError | UnavailableError):
                raise result
        return not any(isinstance(result, UnavailableError) for result in results)

    async def attachments(self, asked: Sequence[VectorStoreFileCreate], *, param: str) -> list[Attachment]:
        """What is asked of files that exist. Raises NotFoundError or InvalidRequestError."""
        ids = [each.file_id for each in asked]
        if len(ids) != len(set(ids)):
            twice = next(each for each in ids if ids.count(each) > 1)
            raise InvalidRequestError(f"`{param}` names the file {twice!r} twice", param=param)
        chunkings = [self.chunking.read(each.chunking_strategy) for each in asked]
        found = await asyncio.to_thread(self.files.several, ids)
        return [
            Attachment(
                file_id=file.file_id,
                filename=file.filename,
                size_bytes=file.size_bytes,
                attributes=own_attributes(each.attributes),
                chunking=chunking,
            )
            for file, each, chunking in zip(found, asked, chunkings, strict=True)
        ]

    def text(self, file: StoreFile) -> str:
        """The text of a file as it is indexed. Blocking. Raises InvalidRequestError."""
        try:
            return parse_upload(self.files.content(file.file_id), file).text
        except UnreadableFileError as exc:
            raise InvalidRequestError(f"the file {file.file_id!r} {exc.error.message}", param="file_id") from exc

    def _check_made(self, request: Request) -> None:
        if _name(request) in self.released():
            raise InvalidRequestError(
                f"the vector store {_name(request)!r} belongs to the release and is read-only: its content comes from "
                "an index spec, with `rag-stack index build`; create a store of your own to upload files",
                param="vector_store_id",
            )


def alike(
    file_ids: Sequence[str],
    *,
    attributes: Mapping[str, AttributeValue] | None = None,
    chunking: ChunkingStrategy | None = None,
) -> list[VectorStoreFileCreate]:
    """Files that share their settings."""
    shared = dict(attributes) if attributes else None
    return [VectorStoreFileCreate(file_id=each, attributes=shared, chunking_strategy=chunking) for each in file_ids]


def own_attributes(given: Mapping[str, AttributeValue] | None) -> dict[str, AttributeValue]:
    """The attributes that a caller gives to a file. Raises InvalidRequestError for those that every file has."""
    if taken := sorted(_GIVEN.intersection(given or ())):
        raise InvalidRequestError(
            f"the attribute {taken[0]!r} is given by the server: `filename` is the uploaded file's name and `path` its "
            "id, and filters may ask for both; give yours another name",
            param="attributes",
        )
    return dict(given or {})


def _name(request: Request) -> str:
    return str(request.path_params["store"])
