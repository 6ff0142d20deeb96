"""All of /v1/vector_stores: stores made over HTTP beside those of the release, which stay read-only."""

import asyncio
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api import store_encoding
from rag_stack.api.http import read_json
from rag_stack.api.listing import listing
from rag_stack.api.store_files import StoreFiles
from rag_stack.api.store_keeper import StoreKeeper, alike
from rag_stack.api.validation import validated
from rag_stack.api.vector_stores import StoreCard, VectorStores
from rag_stack.errors import InvalidRequestError, NotFoundError, UnavailableError
from rag_stack.protocol import SearchPage, SearchResult, VectorStore, VectorStoreCreate, VectorStoreUpdate
from rag_stack.stores.store import Store
from rag_stack.types import Hit

_Listed: TypeAlias = StoreCard | Store


@dataclass(frozen=True, slots=True)
class StoreControl:
    """The handlers. `reading` serves the release's stores, and searches all of them."""

    reading: VectorStores
    keeper: StoreKeeper

    def routes(self) -> list[Route]:
        """What this owns."""
        one = "/v1/vector_stores/{store}"
        return [
            Route("/v1/vector_stores", self.list_stores, methods=["GET"]),
            Route("/v1/vector_stores", self.create, methods=["POST"]),
            Route(one, self.get_store, methods=["GET"]),
            Route(one, self.update, methods=["POST"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/search", self.search, methods=["POST"]),
            *StoreFiles(self.keeper, self.reading.max_body_bytes).routes(),
        ]

    async def list_stores(self, request: Request) -> JSONResponse:
        """A page of all stores, newest first."""
        made = await asyncio.to_thread(self.keeper.register.all)
        stores: list[_Listed] = [*self._released(), *(store for store in made if not store.deleted)]
        stores.sort(key=lambda each: (each.created_at, _id(each)))
        return listing(stores, request, id_of=_id, to_wire=_to_wire)

    async def create(self, request: Request) -> JSONResponse:
        """A new store, whose files wait if it has any."""
        body = await self._body(request)
        asked = validated(VectorStoreCreate, body)
        files = alike(asked.file_ids, chunking=asked.chunking_strategy)
        store = await self.keeper.create(
            name=asked.name,
            description=asked.description,
            metadata=asked.metadata,
            attachments=await self.keeper.attachments(files, param="file_ids"),
        )
        return _response(store)

    async def get_store(self, request: Request) -> JSONResponse:
        """One store."""
        if self._is_released(request):
            return await self.reading.get_store(request)
        return _response(await self.keeper.get(request))

    async def update(self, request: Request) -> JSONResponse:
        """Another name, description or metadata."""
        asked = validated(VectorStoreUpdate, await self._body(request))
        store = await self.keeper.change(
            request,
            lambda now: now.renamed(name=asked.name, description=asked.description, metadata=asked.metadata),
        )
        return _response(store)

    async def delete(self, request: Request) -> JSONResponse:
        """Remove a store; its files stay."""
        store_id = await self.keeper.delete(request)
        return JSONResponse({"id": store_id, "object": "vector_store.deleted", "deleted": True})

    async def search(self, request: Request) -> JSONResponse:
        """Passages of the files that say `completed`, best first."""
        if self._is_released(request):
            return await self.reading.search(request)
        store_id, register = str(request.path_params["store"]), self.keeper.register
        # What this process has written itself it knows, so that a search need not ask the object store.
        store: Store | None = register.known(store_id)
        if store is None:
            store = await asyncio.to_thread(register.get, store_id)
        asked, queries = await self.reading.read_search(request)
        if store.index_version is None:
            return JSONResponse(SearchPage(search_query=queries, data=[], index_version="", timings_ms={}).model_dump())

        def show(hit: Hit) -> SearchResult | None:
            """None for a file that does not say `completed`: a new version is searched a moment before it does."""
            now = register.known(store_id)
            return store_encoding.search_result(now, hit) if now is not None else None

        opening = UnavailableError(f"the store {store_id!r} is being opened; try again", retry_after_s=1)
        try:
            page = await self.reading.page(request, store_id, asked, queries, show=show)
        except NotFoundError as exc:
            # Deleted in this moment, or this process has not heard of it yet.
            await asyncio.to_thread(register.get, store_id)
            raise opening from exc
        if not page.index_version:
            # This process has just begun: nothing is found yet, though files say `completed`.
            raise opening
        return JSONResponse(page.model_dump())

    async def _body(self, request: Request) -> dict[str, object]:
        body = await read_json(request.scope, request.receive, max_bytes=self.reading.max_body_bytes)
        if body.get("expires_after") is not None:
            raise InvalidRequestError(
                "`expires_after` is not supported: stores stay until they are deleted; leave it out",
                param="expires_after",
            )
        return body

    def _released(self) -> list[StoreCard]:
        released = self.keeper.released()
        return [card for card in self.reading.cards() if card.name in released]

    def _is_released(self, request: Request) -> bool:
        return request.path_params["store"] in self.keeper.released()


def _id(each: _Listed) -> str:
    return each.name if isinstance(each, StoreCard) else each.store_id


def _to_wire(each: _Listed) -> VectorStore:
    return each.to_wire() if isinstance(each, StoreCard) else store_encoding.vector_store(each)


def _response(store: Store) -> JSONResponse:
    return JSONResponse(store_encoding.vector_store(store).model_dump())
