"""GET /v1/vector_stores, GET /v1/vector_stores/{id}, POST /v1/vector_stores/{id}/search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api import encoding
from rag_stack.api.http import read_json, while_connected
from rag_stack.api.validation import validated
from rag_stack.errors import InvalidRequestError, NotFoundError
from rag_stack.protocol import MAX_QUERY_CHARS, FileCounts, SearchPage, SearchRequest, VectorStore
from rag_stack.retrieval.retriever import Retriever

_MAX_QUERIES = 16


@dataclass(frozen=True, slots=True)
class StoreCard:
    """What is told about a store."""

    name: str
    description: str
    index_version: str
    created_at: int
    documents: int
    usage_bytes: int

    def to_wire(self) -> VectorStore:
        """The store as OpenAI's API gives it."""
        return VectorStore(
            id=self.name,
            name=self.name,
            description=self.description,
            created_at=self.created_at,
            usage_bytes=self.usage_bytes,
            file_counts=FileCounts(completed=self.documents, total=self.documents),
            index_version=self.index_version,
        )


@dataclass(frozen=True, slots=True)
class VectorStores:
    """The handlers. `cards` gives the stores that there are now."""

    cards: Callable[[], Sequence[StoreCard]]
    retriever: Retriever
    max_body_bytes: int

    def routes(self) -> list[Route]:
        """What this owns."""
        return [
            Route("/v1/vector_stores", self.list_stores, methods=["GET"]),
            Route("/v1/vector_stores/{store}", self.get_store, methods=["GET"]),
            Route("/v1/vector_stores/{store}/search", self.search, methods=["POST"]),
        ]

    async def list_stores(self, request: Request) -> JSONResponse:
        """A page of stores, by name."""
        limit = _limit(request)
        ordered = sorted(self.cards(), key=lambda card: card.name, reverse=request.query_params.get("order") == "desc")
        if (before := request.query_params.get("before")) is not None:
            ordered = ordered[: next((n for n, card in enumerate(ordered) if card.name == before), 0)]
            # The page that ends where the other one begins.
            return _page(ordered[-limit:], has_more=len(ordered) > limit)
        if (after := request.query_params.get("after")) is not None:
            ordered = ordered[next((n + 1 for n, card in enumerate(ordered) if card.name == after), len(ordered)) :]
        return _page(ordered[:limit], has_more=len(ordered) > limit)

    async def get_store(self, request: Request) -> JSONResponse:
        """One store."""
        return JSONResponse(self._card(request).to_wire().model_dump())

    async def search(self, request: Request) -> JSONResponse:
        """Passages for a query, best first."""
        card = self._card(request)
        body = await read_json(request.scope, request.receive, max_bytes=self.max_body_bytes)
        asked = validated(SearchRequest, body)
        queries = _queries(asked.query)
        search = self.retriever.retrieve(
            queries,
            store=card.name,
            top_k=asked.max_num_results,
            filters=asked.filters,
            score_threshold=asked.ranking_options.score_threshold,
        )
        found = await while_connected(search, request.receive)
        page = SearchPage(
            search_query=queries,
            data=[encoding.search_result(hit) for hit in found.hits],
            index_version=found.index_version,
            timings_ms=encoding.timings_ms(found.timings),
        )
        return JSONResponse(page.model_dump())

    def _card(self, request: Request) -> StoreCard:
        name = request.path_params["store"]
        cards = self.cards()
        for card in cards:
            if card.name == name:
                return card
        raise NotFoundError(
            f"the vector store {name!r} does not exist; there are {[card.name for card in cards]}",
            param="vector_store_id",
        )


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", "20")
    if not (given.isascii() and given.isdigit() and len(given) <= 3 and 1 <= int(given) <= 100):
        raise InvalidRequestError(f"`limit` must be 1 to 100, got {given[:20]!r}", param="limit")
    return int(given)


def _page(cards: Sequence[StoreCard], *, has_more: bool) -> JSONResponse:
    return JSONResponse(
        {
            "object": "list",
            "data": [card.to_wire().model_dump() for card in cards],
            "first_id": cards[0].name if cards else None,
            "last_id": cards[-1].name if cards else None,
            "has_more": has_more,
        }
    )


def _queries(query: str | list[str]) -> list[str]:
    queries = [text.strip() for text in ([query] if isinstance(query, str) else query)]
    if not queries or not all(queries):
        raise InvalidRequestError("`query` must not be empty", param="query")
    if len(queries) > _MAX_QUERIES:
        raise InvalidRequestError(f"at most {_MAX_QUERIES} queries at once, got {len(queries)}", param="query")
    if max(map(len, queries)) > MAX_QUERY_CHARS:
        raise InvalidRequestError(f"a query has at most {MAX_QUERY_CHARS} characters", param="query")
    return queries
