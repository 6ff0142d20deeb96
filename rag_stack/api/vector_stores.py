"""GET /v1/vector_stores, GET /v1/vector_stores/{id}, POST /v1/vector_stores/{id}/search: what every replica can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api import encoding
from rag_stack.api.http import read_json, while_connected
from rag_stack.api.listing import listing
from rag_stack.api.validation import validated
from rag_stack.errors import InvalidRequestError, NotFoundError
from rag_stack.protocol import MAX_QUERY_CHARS, FileCounts, SearchPage, SearchRequest, SearchResult, VectorStore
from rag_stack.retrieval.retriever import Retriever
from rag_stack.types import Hit

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
        """A page of stores."""
        cards = sorted(self.cards(), key=lambda card: (card.created_at, card.name))
        return listing(cards, request, id_of=lambda card: card.name, to_wire=StoreCard.to_wire)

    async def get_store(self, request: Request) -> JSONResponse:
        """One store."""
        return JSONResponse(self._card(request).to_wire().model_dump())

    async def search(self, request: Request) -> JSONResponse:
        """Passages for a query, best first."""
        card = self._card(request)
        asked, queries = await self.read_search(request)
        return JSONResponse((await self.page(request, card.name, asked, queries)).model_dump())

    async def read_search(self, request: Request) -> tuple[SearchRequest, list[str]]:
        """What is asked, and its queries. Raises InvalidRequestError."""
        body = await read_json(request.scope, request.receive, max_bytes=self.max_body_bytes)
        asked = validated(SearchRequest, body)
        return asked, _queries(asked.query)

    async def page(
        self,
        request: Request,
        store: str,
        asked: SearchRequest,
        queries: list[str],
        *,
        show: Callable[[Hit], SearchResult | None] = encoding.search_result,
    ) -> SearchPage:
        """The answer to a search; hits of which `show` makes nothing are left out."""
        search = self.retriever.retrieve(
            queries,
            stores=[store],
            top_k=asked.max_num_results,
            filters=asked.filters,
            score_threshold=asked.ranking_options.score_threshold or 0.0,
            ranking=self.retriever.ranking.asked(asked.ranking_options),
        )
        found = await while_connected(search, request.receive)
        return SearchPage(
            search_query=queries,
            data=[result for hit in found.hits if (result := show(hit)) is not None],
            index_version=found.index_versions[store],
            timings_ms=encoding.timings_ms(found.timings),
        )

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


def _queries(query: str | list[str]) -> list[str]:
    queries = [text.strip() for text in ([query] if isinstance(query, str) else query)]
    if not queries or not all(queries):
        raise InvalidRequestError("`query` must not be empty", param="query")
    if len(queries) > _MAX_QUERIES:
        raise InvalidRequestError(f"at most {_MAX_QUERIES} queries at once, got {len(queries)}", param="query")
    if max(map(len, queries)) > MAX_QUERY_CHARS:
        raise InvalidRequestError(f"a query has at most {MAX_QUERY_CHARS} characters", param="query")
    return queries
