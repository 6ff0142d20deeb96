"""What the official client needs from a server of ours, unchanged. Any server with a default store can be checked."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

QUESTION = "When does the harbour of Alden freeze?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def base_url(layer_url: str) -> str:
    """The real layer around the deterministic engine, with the store "town" as its default."""
    return f"{layer_url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def chunks_of(client: openai.OpenAI, model: str, **settings: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **settings))


def test_the_stream_helper_puts_our_chunks_together(client: openai.OpenAI, model: str) -> None:
    settings: Any = {"model": model, "messages": MESSAGES, "stream_options": {"include_usage": True}}
    with client.chat.completions.stream(**settings) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    whole = client.chat.completions.create(model=model, messages=MESSAGES)
    message, expected = final.choices[0].message, whole.choices[0].message
    assert message.content == "".join(deltas) == expected.content
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.total_tokens == whole.usage.total_tokens
    kinds = [annotation.type for annotation in message.annotations or []]
    assert kinds[: kinds.count("source")] == ["source"] * kinds.count("source") != []
    assert kinds[kinds.count("source") :] == [annotation.type for annotation in expected.annotations or []] != []


def test_several_choices_are_kept_apart(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=MESSAGES, n=2) as stream:
        final = stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1]
    first, second = (choice.message for choice in final.choices)
    assert first.content == second.content
    assert len(first.annotations or []) == len(second.annotations or []) > 0


def test_lists_in_deltas_count_on_over_all_chunks(client: openai.OpenAI, model: str) -> None:
    chunks = chunks_of(client, model)
    deltas = [choice.delta.model_dump() for chunk in chunks for choice in chunk.choices]
    indexes = [entry["index"] for delta in deltas for entry in delta.get("annotations") or []]
    assert indexes == list(range(len(indexes)))
    assert len(indexes) >= 2


def test_sources_come_before_the_first_word(client: openai.OpenAI, model: str) -> None:
    first = chunks_of(client, model)[0]
    delta = first.choices[0].delta.model_dump()
    assert (delta["role"], delta["content"]) == ("assistant", "")
    sources = [entry["source"] for entry in delta["annotations"]]
    assert [source["number"] for source in sources] == list(range(1, len(sources) + 1))
    assert first.model_extra["rag"]["sources"] == sources


def test_citations_come_with_the_finish(client: openai.OpenAI, model: str) -> None:
    chunks = chunks_of(client, model)
    (last,) = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    kinds = {entry["type"] for entry in last.choices[0].delta.model_dump()["annotations"]}
    assert kinds <= {"url_citation", "file_citation"}
    assert last.model_extra["rag"]["citations"]
    assert last.model_extra["rag"]["sources"] == chunks[0].model_extra["rag"]["sources"]


def test_only_a_usage_frame_has_no_choices(client: openai.OpenAI, model: str) -> None:
    assert all(chunk.choices for chunk in chunks_of(client, model))
    with_usage = chunks_of(client, model, stream_options={"include_usage": True})
    assert [bool(chunk.choices) for chunk in with_usage] == [True] * (len(with_usage) - 1) + [False]
    assert with_usage[-1].usage is not None


def test_url_citations_have_the_official_type(client: openai.OpenAI, model: str) -> None:
    message = client.chat.completions.create(model=model, messages=MESSAGES).choices[0].message
    citations = [each.url_citation for each in message.annotations or [] if each.type == "url_citation"]
    assert citations
    for citation in citations:
        assert 0 <= citation.start_index < citation.end_index <= len(message.content or "")
        assert citation.url.startswith("https://")


def test_the_official_search(client: openai.OpenAI) -> None:
    (store,) = client.vector_stores.list().data
    page = client.vector_stores.search(store.id, query=QUESTION, max_num_results=2)
    assert [type(result.score) for result in page.data] == [float, float]
    assert page.data[0].score >= page.data[1].score
    assert page.data[0].content[0].type == "text"
    assert client.vector_stores.retrieve(store.id).status == "completed"


def test_file_search_as_a_tool(client: openai.OpenAI, model: str) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": ["town"], "max_num_results": 1}]
    answer = client.chat.completions.create(model=model, messages=MESSAGES, tools=tools)
    assert len(answer.model_extra["rag"]["sources"]) == 1


def test_function_tools_work_together_with_retrieval(client: openai.OpenAI, model: str) -> None:
    function = {"type": "function", "function": {"name": "ring_bell", "parameters": {"type": "object"}}}
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, tools=[function], tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    (tool_call,) = final.choices[0].message.tool_calls or []
    assert (tool_call.function.name, final.choices[0].finish_reason) == ("ring_bell", "tool_calls")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"model": "unknown"}, openai.NotFoundError),
        ({"extra_body": {"vector_store_ids": ["cellar"]}}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
        ({"extra_body": {"documents": "text"}}, openai.BadRequestError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_official_errors(
    client: openai.OpenAI, model: str, settings: Any, kind: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": model, "messages": MESSAGES, "stream": stream, **settings})
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.request_id


@pytest.mark.parametrize("name", ["store", "metadata", "user", "prompt_cache_key", "service_tier", "verbosity"])
def test_fields_that_servers_do_not_know_are_no_error(client: openai.OpenAI, model: str, name: str) -> None:
    value = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "verbosity": "low"}.get(name, "x")
    answer = client.chat.completions.create(model=model, messages=MESSAGES, extra_body={name: value})
    assert answer.choices[0].message.content
