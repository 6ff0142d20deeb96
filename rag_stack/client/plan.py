"""What a client asks a server, step by step and without I/O, so that the sync and the async client share it.

A plan is a generator: it yields a `Call`, is sent the decoded reply, and returns the result.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from rag_stack.client.answer import Answer, read_answer
from rag_stack.client.reply import ModelPage, StorePage, parse
from rag_stack.errors import EngineError, InvalidRequestError, NotFoundError
from rag_stack.protocol import Filter, SearchPage, SearchRequest, SearchResult, VectorStore

ResultT = TypeVar("ResultT")
Ranker: TypeAlias = Literal["auto", "none", "default-2024-11-15", "hybrid", "dense", "lexical"]
Body: TypeAlias = dict[str, Any]
CHAT_PATH = "/chat/completions"
INCLUDE_TEXT = "file_search_call.results"


@dataclass(frozen=True, slots=True)
class Call:
    """One request, its path relative to the API's root."""

    method: Literal["GET", "POST"]
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None


Plan: TypeAlias = Generator[Call, object, ResultT]


class AskOptions(TypedDict, total=False):
    """How to answer a question.

    Where the passages come from: `store`, one or several (with `top_k` passages, that match `filters`), or
    `documents` (`{"title": ..., "text": ...}`), or by default the release's default store. `include_text` brings the
    texts along.
    """

    store: str | Sequence[str] | None
    model: str | None
    top_k: int | None
    filters: Filter | Mapping[str, Any] | None
    documents: Sequence[Mapping[str, str]] | None
    max_tokens: int | None
    temperature: float | None
    include_text: bool


class SearchOptions(TypedDict, total=False):
    """How to search: `store` may be left out where the server has one; `top_k` is 1 to 50, by default 10.

    `ranker` is `auto`, `none`, `hybrid`, `dense` or `lexical`, see RankingOptions.
    """

    store: str | None
    top_k: int
    filters: Filter | Mapping[str, Any] | None
    score_threshold: float
    ranker: Ranker | None


@dataclass(frozen=True, slots=True)
class SearchResults:
    """Passages, best first, and the index version that they were found in."""

    hits: tuple[SearchResult, ...]
    store: str
    index_version: str
    timings_ms: Mapping[str, float]

    def __iter__(self) -> Iterator[SearchResult]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)


class Plans:
    """The plans of one client; it remembers which model the server has."""

    def __init__(self) -> None:
        self._model: str | None = None

    def ask(self, question: str, options: AskOptions) -> Plan[Answer]:
        """A whole answer."""
        body = yield from self._chat(question, **options)
        return read_answer((yield Call("POST", CHAT_PATH, body=body)))

    def stream(self, question: str, options: AskOptions) -> Plan[Body]:
        """The body with which the answer's stream is opened."""
        body = yield from self._chat(question, **options)
        return {**body, "stream": True, "stream_options": {"include_usage": True}}

    def search(self, query: str, options: SearchOptions) -> Plan[SearchResults]:
        """The passages for a query."""
        return (yield from self._search(query, **options))

    def stores(self) -> Plan[tuple[VectorStore, ...]]:
        """All stores, page by page."""
        found: list[VectorStore] = []
        more = True
        while more:
            query = {"limit": "100", **({"after": found[-1].id} if found else {})}
            page = parse((yield Call("GET", "/vector_stores", query=query)), StorePage)
            found += page.data
            more = page.has_more and bool(page.data)
        return tuple(found)

    def models(self) -> Plan[tuple[str, ...]]:
        """All names that a request may give as its model; the first is the model itself."""
        page = parse((yield Call("GET", "/models")), ModelPage)
        return tuple(card.id for card in page.data)

    def _chat(
        self,
        question: str,
        *,
        store: str | Sequence[str] | None = None,
        model: str | None = None,
        top_k: int | None = None,
        filters: Filter | Mapping[str, Any] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        include_text: bool = False,
    ) -> Plan[Body]:
        stores = [store] if isinstance(store, str) else None if store is None else list(store)
        if stores == []:
            raise InvalidRequestError("`store` is an empty list; name a store, or leave it out", param="store")
        searches = store is not None or top_k is not None or filters is not None
        if documents is not None and searches:
            raise InvalidRequestError("give `documents`, or a store to search with top_k and filters; not both")
        body: Body = {"messages": [{"role": "user", "content": question}]}
        if top_k is not None or filters is not None:
            tool = _file_search(top_k=top_k, filters=filters)
            body["tools"] = [{**tool, "vector_store_ids": stores or [(yield from self._only_store())]}]
        elif stores is not None:
            body["vector_store_ids"] = stores
        elif documents is not None:
            body["documents"] = [dict(document) for document in documents]
        if include_text:
            body["include"] = [INCLUDE_TEXT]
        body |= {k: v for k, v in (("max_tokens", max_tokens), ("temperature", temperature)) if v is not None}
        return {"model": model or (yield from self._default_model()), **body}

    def _search(
        self,
        query: str,
        *,
        store: str | None = None,
        top_k: int = 10,
        filters: Filter | Mapping[str, Any] | None = None,
        score_threshold: float = 0.0,
        ranker: Ranker | None = None,
    ) -> Plan[SearchResults]:
        options = {"score_threshold": score_threshold, "ranker": ranker}
        body = _search_body(query, top_k=top_k, filters=filters, ranking_options=options)
        name = store or (yield from self._only_store())
        path = f"/vector_stores/{quote(name, safe='')}/search"
        page = parse((yield Call("POST", path, body=body)), SearchPage)
        return SearchResults(
            hits=tuple(page.data), store=name, index_version=page.index_version, timings_ms=page.timings_ms
        )

    def _default_model(self) -> Plan[str]:
        if self._model is None:
            names = yield from self.models()
            if not names:
                raise EngineError("the server lists no model at /v1/models; name one with `model`")
            self._model = names[0]
        return self._model

    def _only_store(self) -> Plan[str]:
        names = [store.id for store in (yield from self.stores())]
        match names:
            case [name]:
                return name
            case []:
                raise NotFoundError("the server has no store to search", param="store")
            case _:
                raise InvalidRequestError(f"the server has several stores: name one of {sorted(names)}", param="store")


def _search_body(
    query: str,
    *,
    top_k: int,
    filters: Filter | Mapping[str, Any] | None,
    ranking_options: Mapping[str, Any] | None = None,
) -> Body:
    """The body of a search, checked before it is sent. Raises InvalidRequestError."""
    try:
        request = SearchRequest.model_validate(
            {
                "query": query,
                "filters": filters,
                "max_num_results": top_k,
                "ranking_options": ranking_options or {},
            }
        )
    except ValidationError as exc:
        problem = exc.errors()[0]
        place = ".".join(map(str, problem["loc"])).replace("max_num_results", "top_k")
        raise InvalidRequestError(f"{place}: {problem['msg']}", param=place) from exc
    return request.model_dump(exclude_none=True)


def _file_search(*, top_k: int | None, filters: Filter | Mapping[str, Any] | None) -> Body:
    """A file_search tool, its settings checked as those of a search."""
    checked = _search_body("", top_k=10 if top_k is None else top_k, filters=filters)
    tool: Body = {"type": "file_search"}
    if top_k is not None:
        tool["max_num_results"] = checked["max_num_results"]
    if filters is not None:
        tool["filters"] = checked["filters"]
    return tool
