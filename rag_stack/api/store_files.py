"""/v1/vector_stores/{id}/files and /file_batches: which files a store holds, and how far each is."""

import asyncio
import secrets
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api import store_encoding
from rag_stack.api.http import read_json
from rag_stack.api.listing import choice, listing
from rag_stack.api.store_keeper import StoreKeeper, alike, own_attributes
from rag_stack.api.validation import validated
from rag_stack.errors import InvalidRequestError
from rag_stack.protocol import (
    MAX_BATCH_FILES,
    FileBatchCreate,
    VectorStoreFile,
    VectorStoreFileCreate,
    VectorStoreFileUpdate,
)
from rag_stack.stores.store import STATUSES, Store, StoreFile

# How long the official client's helpers wait before they ask again; a small build takes about a second.
_POLL = {"openai-poll-after-ms": "500"}
# Each file of a batch has some fields and up to 16 attributes.
_MAX_VALUES = MAX_BATCH_FILES * 24


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """The handlers."""

    keeper: StoreKeeper
    max_body_bytes: int

    def routes(self) -> list[Route]:
        """What this owns."""
        files, batches = "/v1/vector_stores/{store}/files", "/v1/vector_stores/{store}/file_batches"
        return [
            Route(files, self.list_files, methods=["GET"]),
            Route(files, self.attach, methods=["POST"]),
            Route(f"{files}/{{file}}", self.get_file, methods=["GET"]),
            Route(f"{files}/{{file}}", self.update, methods=["POST"]),
            Route(f"{files}/{{file}}", self.remove, methods=["DELETE"]),
            Route(f"{files}/{{file}}/content", self.content, methods=["GET"]),
            Route(batches, self.attach_batch, methods=["POST"]),
            Route(f"{batches}/{{batch}}", self.get_batch, methods=["GET"]),
            Route(f"{batches}/{{batch}}/cancel", self.cancel_batch, methods=["POST"]),
            Route(f"{batches}/{{batch}}/files", self.list_batch, methods=["GET"]),
        ]

    async def list_files(self, request: Request) -> JSONResponse:
        """A page of a store's files, newest first."""
        store = await self.keeper.get(request)
        return self._listing(request, store, store.shown)

    async def attach(self, request: Request) -> JSONResponse:
        """Put an uploaded file into a store: acknowledged when that is stored, done when it says `completed`."""
        asked = validated(VectorStoreFileCreate, await self._body(request))
        attachments = await self.keeper.attachments([asked], param="file_id")
        store = await self.keeper.change(request, lambda now: now.attached(attachments))
        return self._file(store, asked.file_id)

    async def get_file(self, request: Request) -> JSONResponse:
        """How far a file is."""
        return self._file(await self.keeper.get(request), _file_id(request))

    async def update(self, request: Request) -> JSONResponse:
        """Other attributes; answered when every search goes by them."""
        body, file_id = await self._body(request), _file_id(request)
        if "attributes" not in body:
            raise InvalidRequestError("`attributes` is missing; null removes them all", param="attributes")
        asked = validated(VectorStoreFileUpdate, body)
        attributes = own_attributes(asked.attributes)
        store = await self.keeper.change(request, lambda now: now.described(file_id, attributes))
        await self.keeper.settled(store, store.file(file_id).generation)
        return self._file(await self.keeper.get(request), file_id)

    async def remove(self, request: Request) -> JSONResponse:
        """Take a file out of a store; answered when no search finds it any more. The uploaded file stays."""
        store = await self.keeper.get(request)
        await self.keeper.remove_file(store.store_id, _file_id(request))
        return JSONResponse({"id": _file_id(request), "object": "vector_store.file.deleted", "deleted": True})

    async def content(self, request: Request) -> JSONResponse:
        """The text of a file as it is indexed."""
        file = (await self.keeper.get(request)).file(_file_id(request))
        text = await asyncio.to_thread(self.keeper.text, file)
        return JSONResponse(
            {
                "object": "vector_store.file_content.page",
                "data": [{"type": "text", "text": text}],
                "has_more": False,
                "next_page": None,
            }
        )

    async def attach_batch(self, request: Request) -> JSONResponse:
        """Put several files into a store in one step."""
        asked = validated(FileBatchCreate, await self._body(request), max_values=_MAX_VALUES)
        if (asked.file_ids is None) == (asked.files is None):
            raise InvalidRequestError("exactly one of `file_ids` and `files` must be given", param="file_ids")
        files = asked.files or alike(
            asked.file_ids or [], attributes=asked.attributes, chunking=asked.chunking_strategy
        )
        attachments = await self.keeper.attachments(files, param="files" if asked.files else "file_ids")
        batch_id = f"vsfb_{secrets.token_hex(12)}"
        store = await self.keeper.change(request, lambda now: now.attached(attachments, batch_id=batch_id))
        return _batch(store, batch_id)

    async def get_batch(self, request: Request) -> JSONResponse:
        """How far the files of a batch are."""
        return _batch(await self.keeper.get(request), _batch_id(request))

    async def cancel_batch(self, request: Request) -> JSONResponse:
        """Take out of the work what still waits."""
        batch_id = _batch_id(request)
        return _batch(await self.keeper.change(request, lambda now: now.cancelled(batch_id)), batch_id)

    async def list_batch(self, request: Request) -> JSONResponse:
        """A page of a batch's files."""
        store = await self.keeper.get(request)
        return self._listing(request, store, store.of_batch(_batch_id(request)))

    def _listing(self, request: Request, store: Store, files: list[StoreFile]) -> JSONResponse:
        status = choice(request, "filter", STATUSES)

        def to_wire(file: StoreFile) -> VectorStoreFile:
            return store_encoding.store_file(store, file, chunking=self.keeper.chunking)

        found = [file for file in files if status is None or file.status == status]
        return listing(found, request, id_of=lambda file: file.file_id, to_wire=to_wire)

    def _file(self, store: Store, file_id: str) -> JSONResponse:
        file = store_encoding.store_file(store, store.file(file_id), chunking=self.keeper.chunking)
        return JSONResponse(file.model_dump(), headers=_POLL)

    async def _body(self, request: Request) -> dict[str, object]:
        return await read_json(request.scope, request.receive, max_bytes=self.max_body_bytes)


def _batch(store: Store, batch_id: str) -> JSONResponse:
    return JSONResponse(store_encoding.file_batch(store, batch_id).model_dump(), headers=_POLL)


def _file_id(request: Request) -> str:
    return str(request.path_params["file"])


def _batch_id(request: Request) -> str:
    return str(request.path_params["batch"])
