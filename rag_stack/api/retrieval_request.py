"""What retrieval a request asks for.

There are five ways to ask, and the first match wins, unless the body says `rag_retrieval: "none"`: then nothing is
searched, and the messages go to the engine as they are.

1. `tools: [{"type": "file_search", "vector_store_ids": [...]}]`
2. `vector_store_ids: [...]` at the top
3. `model: "<model>@<store>"`, for user interfaces that can only choose a model
4. `documents: [{title, text}]`: the caller's own passages, no search
5. nothing: the release's default store, if it names one
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rag_stack.api.validation import validated
from rag_stack.errors import InvalidRequestError, NotFoundError
from rag_stack.protocol import Filter, RankingOptions
from rag_stack.types import Hit, Passage

MAX_DOCUMENTS = 50
MAX_STORES = 16
INCLUDE_TEXT = "file_search_call.results"
INCLUDE_MESSAGES = "rag.messages"
INCLUDE_REPLAY = "rag.replay"
# In a body, with the value "none": how a recorded request is asked again.
RETRIEVAL_KEY = "rag_retrieval"


class _FileSearch(BaseModel):
    model_config = ConfigDict(extra="ignore")
    vector_store_ids: list[str] = Field(min_length=1)
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: Filter | None = None
    ranking_options: RankingOptions | None = None


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore")
    text: str = Field(min_length=1)
    title: str = ""
    url: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class RetrievalRequest:
    """The retrieval that a body asked for, and the body without it, as the engine may see it."""

    engine_body: dict[str, Any]
    stores: tuple[str, ...] = ()
    hits: tuple[Hit, ...] = ()
    top_k: int | None = None
    filters: Filter | None = None
    ranking: RankingOptions | None = None
    include: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Reads retrieval requests for one release: its model, its default store, and the stores that there are now."""

    model: str
    stores: Callable[[], Sequence[str]]
    default_store: str | None

    def read(self, body: Mapping[str, Any], *, default: bool) -> RetrievalRequest:
        """Split a body. `default`: whether a body that asks for nothing gets the default store.

        Raises NotFoundError for an unknown model or store, InvalidRequestError for anything malformed.
        """
        engine = {k: v for k, v in body.items() if k not in ("vector_store_ids", "documents", "include", RETRIEVAL_KEY)}
        include = frozenset(_include(body.get("include")))
        engine["model"], alias_store = self._model(body.get("model"))
        search = _file_search(engine)
        if _is_verbatim(body):
            return RetrievalRequest(engine, include=include)
        if search is not None:
            return RetrievalRequest(
                engine,
                stores=self._known_stores(search.vector_store_ids, "tools"),
                top_k=search.max_num_results,
                filters=search.filters,
                ranking=search.ranking_options,
                include=include,
            )
        if body.get("vector_store_ids") is not None:
            stores = self._known_stores(body["vector_store_ids"], "vector_store_ids")
            return RetrievalRequest(engine, stores=stores, include=include)
        if alias_store is not None:
            return RetrievalRequest(engine, stores=(self._known(alias_store, "model"),), include=include)
        if body.get("documents") is not None:
            return RetrievalRequest(engine, hits=_given(body["documents"]), include=include)
        stores = (self.default_store,) if default and self.default_store is not None else ()
        return RetrievalRequest(engine, stores=stores, include=include)

    def _model(self, given: object) -> tuple[str, str | None]:
        if not isinstance(given, str) or not given:
            raise InvalidRequestError(f"`model` must name a model; this server has {self.model!r}", param="model")
        if given == self.model:
            return given, None
        model, at, store = given.rpartition("@")
        if at and model == self.model:
            return model, store
        raise NotFoundError(f"the model {given!r} does not exist; this server has {self.model!r}", param="model")

    def _known_stores(self, ids: object, param: str) -> tuple[str, ...]:
        if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids) or not ids:
            raise InvalidRequestError("`vector_store_ids` must be a list with the ids of stores", param=param)
        stores = tuple(dict.fromkeys(ids))
        if len(stores) > MAX_STORES:
            raise InvalidRequestError(f"a question can search {MAX_STORES} stores, got {len(stores)}", param=param)
        return tuple(self._known(each, param) for each in stores)

    def _known(self, store: str, param: str) -> str:
        stores = self.stores()
        if store not in stores:
            raise NotFoundError(f"the vector store {store!r} does not exist; there are {list(stores)}", param=param)
        return store


def _is_verbatim(body: Mapping[str, Any]) -> bool:
    given = body.get(RETRIEVAL_KEY)
    if given not in (None, "none"):
        raise InvalidRequestError(f'`{RETRIEVAL_KEY}` can only be "none", got {given!r:.50}', param=RETRIEVAL_KEY)
    return given == "none"


def _include(given: object) -> Sequence[str]:
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise InvalidRequestError("`include` must be a list of strings", param="include")
    return given


def _file_search(engine: dict[str, Any]) -> _FileSearch | None:
    """Take a file_search tool out of the body; function tools stay for the engine."""
    tools = engine.get("tools")
    if not isinstance(tools, list):
        return None
    searches = [tool for tool in tools if _is_file_search(tool)]
    if not searches:
        return None
    others = [tool for tool in tools if not _is_file_search(tool)]
    if others:
        engine["tools"] = others
    else:
        engine.pop("tools")
    choice = engine.get("tool_choice")
    if not others or (isinstance(choice, Mapping) and choice.get("type") == "file_search"):
        engine.pop("tool_choice", None)
    if len(searches) > 1:
        raise InvalidRequestError("give one file_search tool, not several", param="tools")
    search = searches[0]
    # Chat clients that know only function tools nest the settings one level down.
    settings = search["file_search"] if isinstance(search.get("file_search"), Mapping) else search
    return validated(_FileSearch, settings, where="file_search", param="tools")


def _is_file_search(tool: object) -> bool:
    return isinstance(tool, Mapping) and tool.get("type") == "file_search"


def _given(documents: object) -> tuple[Hit, ...]:
    """The caller's own passages, in the caller's order, as hits."""
    if not isinstance(documents, list) or not 1 <= len(documents) <= MAX_DOCUMENTS:
        raise InvalidRequestError(f"`documents` must be a list of 1 to {MAX_DOCUMENTS} entries", param="documents")
    parsed = [
        validated(_Document, each, where=f"documents[{n}]", param="documents") for n, each in enumerate(documents)
    ]
    return tuple(
        Hit(
            Passage(
                passage_id=document.id or f"document-{n:02d}",
                document_id=document.id or f"document-{n:02d}",
                text=document.text,
                title=document.title,
                uri=document.url,
                start=0,
                end=len(document.text),
            ),
            score=1.0,
        )
        for n, document in enumerate(parsed, start=1)
    )
