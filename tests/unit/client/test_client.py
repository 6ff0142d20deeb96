"""The SDK against the real layer, on a real server."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from rag_stack.client import AsyncClient, Client
from rag_stack.errors import AuthenticationError, ContextLengthError, InvalidRequestError, NotFoundError
from tests.layer import BAKERY, HARBOUR, LIGHTHOUSE, build_layer
from tests.servers import serve

QUESTION = "When does the harbour of Alden freeze?"
Call = Callable[..., Any]


def test_an_answer_carries_everything(call: Call, layer_url: str) -> None:
    answer = call(layer_url, "ask", QUESTION, store="town", top_k=1)
    assert answer.text == "The harbour of Alden freezes in January and closes to fishing boats."
    assert [(source.number, source.file_id, source.url) for source in answer.sources] == [(1, "harbour", HARBOUR.uri)]
    assert (answer.release, answer.store, answer.index_version) == ("test-release", "town", "v1")
    assert (answer.model, answer.finish_reason) == ("tiny", "stop")
    assert set(answer.timings_ms) == {"queue", "embed", "search", "prompt"}
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer.usage.cached_tokens is None


def test_citations_point_into_answer_and_document(call: Call, layer_url: str) -> None:
    answer = call(layer_url, "ask", QUESTION, top_k=1)
    assert [citation.method for citation in answer.citations] == ["overlap"]
    (citation,) = answer.citations
    assert answer.text[citation.start_index : citation.end_index] == answer.text
    assert HARBOUR.text[citation.quote_start : citation.quote_end] == citation.quote


def test_a_stream_gives_the_same_as_ask(call: Call, engine: Starlette, layer_url: str) -> None:
    engine.state.answer = "Boats wait until the ice melts [1]. Nobody knows more."
    engine.state.chunk_chars = 1  # so that every marker is split
    whole = call(layer_url, "ask", QUESTION, top_k=1)
    read = call(layer_url, "stream", QUESTION, top_k=1)
    assert read.sources == whole.sources
    assert "".join(read.texts) == whole.text
    assert len(read.texts) == len(whole.text)
    assert read.answer == replace(whole, timings_ms=read.answer.timings_ms)
    assert [citation.method for citation in whole.citations] == ["marker"]


def test_text_of_sources_comes_only_on_request(call: Call, layer_url: str) -> None:
    assert call(layer_url, "ask", QUESTION, top_k=1).sources[0].text is None
    assert call(layer_url, "ask", QUESTION, top_k=1, include_text=True).sources[0].text == HARBOUR.text
    assert call(layer_url, "stream", QUESTION, top_k=1, include_text=True).sources[0].text == HARBOUR.text


def test_filters_choose_documents(call: Call, layer_url: str) -> None:
    before_1920 = {"type": "lt", "key": "year", "value": 1920}
    answer = call(layer_url, "ask", QUESTION, filters=before_1920)
    assert [source.file_id for source in answer.sources] == ["lighthouse"]
    results = call(layer_url, "search", QUESTION, filters=before_1920)
    assert [hit.file_id for hit in results] == ["lighthouse"]


def test_own_documents_replace_the_search(call: Call, layer_url: str) -> None:
    documents = [{"title": "Mill", "text": "The mill grinds barley. It stands on a hill."}]
    answer = call(layer_url, "ask", "What does the mill do?", documents=documents)
    assert answer.text == "The mill grinds barley."
    assert [source.title for source in answer.sources] == ["Mill"]
    assert answer.index_version is None


def test_documents_and_a_search_exclude_each_other(call: Call, layer_url: str) -> None:
    with pytest.raises(InvalidRequestError, match="not both"):
        call(layer_url, "ask", QUESTION, documents=[{"text": "x"}], store="town")


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"filters": {"type": "eq", "key": "year", "value": 1911}}])
def test_no_store_of_a_list_is_none_to_guess(call: Call, layer_url: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="`store` is an empty list"):
        call(layer_url, "ask", QUESTION, store=[], **options)


def test_without_retrieval_there_are_no_sources(call: Call, engine: Starlette, tmp_path: Path) -> None:
    with serve(build_layer(engine, tmp_path, default_store=None)) as url:
        answer = call(url, "ask", "say: Hello.")
        assert call(url, "stream", "say: Hello.").answer.text == "Hello."
    assert (answer.text, answer.sources, answer.citations, answer.store) == ("Hello.", (), (), None)


def test_settings_reach_the_engine(call: Call, engine: Starlette, layer_url: str) -> None:
    answer = call(layer_url, "ask", QUESTION, max_tokens=2, temperature=0.0)
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == 2
    request = engine.state.requests[-1]
    assert (request["max_tokens"], request["temperature"]) == (2, 0.0)
    call(layer_url, "ask", QUESTION)
    assert "max_tokens" not in engine.state.requests[-1]


def test_cached_tokens_are_told(call: Call, engine: Starlette, layer_url: str) -> None:
    engine.state.prompt_tokens_details = {"cached_tokens": 7}
    for answer in (call(layer_url, "ask", QUESTION), call(layer_url, "stream", QUESTION).answer):
        assert answer.usage.cached_tokens == answer.cached_tokens == 7


def test_search_gives_verbatim_passages(call: Call, layer_url: str) -> None:
    results = call(layer_url, "search", "rye bread with caraway", top_k=1)
    assert (len(results), results.store, results.index_version) == (1, "town", "v1")
    assert results.hits[0].content[0].text == BAKERY.text
    assert call(layer_url, "search", "rye bread", score_threshold=0.99).hits == ()


def test_stores_and_models(call: Call, layer_url: str) -> None:
    (store,) = call(layer_url, "stores")
    assert (store.id, store.file_counts.total, store.index_version) == ("town", 3, "v1")
    assert call(layer_url, "models") == ("tiny", "tiny@town")


def test_several_stores_want_a_name(call: Call, engine: Starlette, tmp_path: Path) -> None:
    stores = {"a": [LIGHTHOUSE], "b": [HARBOUR]}
    with serve(build_layer(engine, tmp_path, stores=stores, default_store="a")) as url:
        with pytest.raises(InvalidRequestError, match=r"several stores.*'a', 'b'"):
            call(url, "search", QUESTION)
        assert call(url, "search", QUESTION, store="b").hits[0].file_id == "harbour"
        assert call(url, "ask", QUESTION).store == "a"


def test_no_store_at_all(call: Call, engine: Starlette, tmp_path: Path) -> None:
    with (
        serve(build_layer(engine, tmp_path, stores={}, default_store=None)) as url,
        pytest.raises(NotFoundError, match="no store"),
    ):
        call(url, "search", QUESTION)


def test_every_page_of_stores_is_read(call: Call, engine: Starlette, tmp_path: Path) -> None:
    layer = build_layer(engine, tmp_path, stores={f"s{n:03d}": [BAKERY] for n in range(101)}, default_store=None)
    with serve(layer) as url:
        assert sorted(store.id for store in call(url, "stores")) == [f"s{n:03d}" for n in range(101)]


def test_unknown_store_and_model(call: Call, layer_url: str) -> None:
    for method in ("ask", "stream", "search"):
        with pytest.raises(NotFoundError, match="'cellar' does not exist"):
            call(layer_url, method, QUESTION, store="cellar")
    with pytest.raises(NotFoundError, match="huge"):
        call(layer_url, "ask", QUESTION, model="huge")


def test_a_store_name_cannot_leave_its_path(call: Call, layer_url: str) -> None:
    with pytest.raises(NotFoundError):
        call(layer_url, "search", QUESTION, store="../models?")


def test_a_question_that_does_not_fit(call: Call, engine: Starlette, tmp_path: Path) -> None:
    with serve(build_layer(engine, tmp_path, context_tokens=300)) as url, pytest.raises(ContextLengthError):
        call(url, "ask", "why? " * 400)


@pytest.mark.parametrize(
    "options", [{"top_k": 51}, {"top_k": 0}, {"filters": {"type": "like", "key": "k", "value": 1}}]
)
def test_what_cannot_be_searched_is_refused_before_it_is_sent(call: Call, engine: Starlette, options: Any) -> None:
    for method in ("ask", "stream", "search"):
        with pytest.raises(InvalidRequestError):
            call("http://127.0.0.1:9", method, QUESTION, store="town", **options)


def test_keys(call: Call, engine: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "right")  # OpenAI's key is not ours: it must not be sent
    with serve(build_layer(engine, tmp_path, keys=["right"])) as url:
        with pytest.raises(AuthenticationError, match="RAG_STACK_API_KEY"):
            call(url, "models")
        with pytest.raises(AuthenticationError):
            call(url, "models", settings={"api_key": "wrong"})
        assert call(url, "models", settings={"api_key": "right"})
        monkeypatch.setenv("RAG_STACK_API_KEY", "right\n")
        assert call(url, "models")


def test_the_model_is_asked_for_once(layer_url: str, engine: Starlette, tmp_path: Path) -> None:
    from rag_stack.metrics import REQUESTS, MemoryRecorder

    recorder = MemoryRecorder()
    with serve(build_layer(engine, tmp_path / "again", recorder=recorder)) as url, Client(base_url=url) as client:
        client.ask(QUESTION)
        client.ask(QUESTION)
    assert len(recorder.values(REQUESTS, {"route": "/v1/models", "status": "200"})) == 1


def test_closing_a_stream_stops_the_generation(engine: Starlette, layer_url: str) -> None:
    engine.state.stall_after_chunks = 2
    with Client(base_url=layer_url) as client:
        stream = client.stream(QUESTION)
        assert next(stream)
        stream.close()
        assert engine.state.aborted.wait(10)
        assert list(stream) == []
        with pytest.raises(RuntimeError, match="not complete"):
            _ = stream.answer


async def test_leaving_an_async_stream_stops_the_generation(engine: Starlette, layer_url: str) -> None:
    engine.state.stall_after_chunks = 2
    async with AsyncClient(base_url=layer_url) as client:
        async with await client.stream(QUESTION) as stream:
            assert await anext(stream)
        assert await asyncio.to_thread(engine.state.aborted.wait, 10)


def test_a_cancelled_question_stops_the_generation(engine: Starlette, layer_url: str) -> None:
    engine.state.stall_after_chunks = 1

    async def cancel() -> None:
        async with AsyncClient(base_url=layer_url) as client:
            stream = await client.stream(QUESTION)
            await anext(stream)
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(engine.state.aborted.wait, 10)

    asyncio.run(cancel())


def test_the_address_comes_from_argument_then_environment(layer_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_STACK_BASE_URL", f"{layer_url}/v1/")
    with Client() as client:
        assert client.models()
    with Client(base_url="http://127.0.0.1:8000") as client:
        assert str(client.openai.base_url) == "http://127.0.0.1:8000/v1/"


@pytest.mark.parametrize(
    "base_url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1"]
)
def test_an_address_that_is_none(base_url: str) -> None:
    with pytest.raises(InvalidRequestError, match="base_url"):
        Client(base_url=base_url)


def test_a_key_that_cannot_be_sent() -> None:
    with pytest.raises(InvalidRequestError, match="ASCII") as caught:
        Client(api_key="schlüssel")
    assert "schlüssel" not in caught.value.message


def test_an_option_that_does_not_exist(layer_url: str) -> None:
    with Client(base_url=layer_url) as client, pytest.raises(TypeError, match="stroe"):
        client.ask(QUESTION, stroe="town")  # type: ignore[call-arg]


def test_the_official_client_is_there_for_the_rest(layer_url: str) -> None:
    with Client(base_url=layer_url) as client:
        assert client.openai.models.retrieve("tiny").id == "tiny"
