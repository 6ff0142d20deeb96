"""What stands on an answer: sources, citations with true offsets, annotations; streamed and not."""

import json
from typing import Any

import pytest
from openai import OpenAI

from rag_stack.metrics import PROMPT_TOKENS
from tests.completion import FINGERPRINT
from tests.integration.api.conftest import OpenLayer
from tests.integration.api.layered import Layered, Streamed
from tests.integration.conftest import ATLAS, KITCHEN

TEXTS = {document.document_id: document.text for document in (*ATLAS, *KITCHEN)}
URIS = {document.document_id: document.uri for document in ATLAS}
CABLE = "The steamship Great Eastern laid the first lasting transatlantic cable from Ireland in 1866."
ZURICH = TEXTS["zürich"].split(". ")[0] + "."


def _ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def _saying(answer: str, about: str = "transatlantic cable steamship") -> list[Any]:
    return _ask(f"{about}\nsay: {answer}")


def _check_rag(rag: dict[str, Any], answer: str) -> None:
    """Every offset of a `rag` block points at what it says."""
    assert rag["release"] == "test-release"
    assert set(rag["timings_ms"]) == {"queue", "embed", "search", "prompt"}
    assert all(value >= 0 for value in rag["timings_ms"].values())
    sources = {source["number"]: source for source in rag["sources"]}
    assert list(sources) == list(range(1, len(sources) + 1))
    for citation in rag["citations"]:
        document = TEXTS[sources[citation["source"]]["file_id"]]
        assert document[citation["quote_start"] : citation["quote_end"]] == citation["quote"] != ""
        assert answer[citation["start_index"] : citation["end_index"]].strip() != ""


def test_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny@atlas", messages=_saying(f"Well. {CABLE} Indeed."))
    message = answer.choices[0].message
    _check_rag(answer.rag, message.content)
    assert (answer.rag["store"], answer.rag["index_version"]) == ("atlas", "atlas-v1")
    [citation] = answer.rag["citations"]
    assert citation["method"] == "overlap"
    url, file = message.annotations
    assert url.type == "url_citation"
    assert (url.url_citation.url, url.url_citation.title) == (URIS["cable"], "Telegraph")
    assert message.content[url.url_citation.start_index : url.url_citation.end_index] == CABLE
    assert file.type == "file_citation"
    assert (file.file_citation["file_id"], file.file_citation["filename"]) == ("cable", "cable.txt")
    assert message.content[file.file_citation["start_index"] : file.file_citation["end_index"]] == CABLE
    assert file.file_citation["quote"] in TEXTS["cable"]
    assert all("text" not in source for source in answer.rag["sources"])


def test_offsets_are_characters(client: OpenAI) -> None:
    said = f"🌊🌊 Grüezi. {ZURICH}"
    for answer, content in _both(client, said, about="Straßenbahnen in Zürich"):
        _check_rag(answer, content)
        [citation] = answer["citations"]
        assert content[citation["start_index"] : citation["end_index"]] == ZURICH
        assert citation["quote"] == ZURICH


def _both(client: OpenAI, said: str, about: str) -> list[tuple[dict[str, Any], str]]:
    """The `rag` block and text of the same answer, whole and streamed."""
    messages = _saying(said, about)
    whole = client.chat.completions.create(model="tiny@atlas", messages=messages)
    with client.chat.completions.stream(model="tiny@atlas", messages=messages) as stream:
        rags = [event.chunk.rag for event in stream if event.type == "chunk" and hasattr(event.chunk, "rag")]
        content = stream.get_final_completion().choices[0].message.content
    return [(whole.rag, whole.choices[0].message.content), (rags[-1], content)]


def test_markers_are_cited_by_the_number_in_the_prompt(client: OpenAI, layered: Layered) -> None:
    first = client.chat.completions.create(model="tiny@atlas", messages=_ask("transatlantic cable steamship"))
    number = next(source["number"] for source in first.rag["sources"] if source["file_id"] == "cable")
    assert f'<document number="{number}" title="Telegraph">' in layered.asked["messages"][1]["content"]
    said = f"It was long ago [{number}]. Nobody knows more [9]."
    for rag, content in _both(client, said, about="transatlantic cable steamship"):
        _check_rag(rag, content)
        [citation] = rag["citations"]
        assert (citation["method"], citation["source"]) == ("marker", number)
        assert citation["quote"] == TEXTS["cable"]
        assert content[citation["start_index"] :].startswith("It was long ago")


def test_unrelated_answers_carry_no_citation(client: OpenAI) -> None:
    said = "Chess players usually castle early because an exposed king is easy prey."
    for rag, _ in _both(client, said, about="transatlantic cable steamship"):
        assert rag["sources"]
        assert rag["citations"] == []
    answer = client.chat.completions.create(model="tiny@atlas", messages=_saying(said))
    assert answer.choices[0].message.annotations == []


@pytest.mark.parametrize("chunk_chars", [1, 3, 10_000])
def test_stream(layered: Layered, chunk_chars: int) -> None:
    layered.engine.state.chunk_chars = chunk_chars
    said = f"{CABLE} So they say [1]."
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = Streamed.of(layered.chat({"model": "tiny@atlas", "messages": _saying(said), **options}))
    assert stream.done
    assert stream.text() == said
    *chunks, usage = stream.chunks
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    first, last = chunks[0], chunks[-1]
    assert first["rag"]["sources"] == last["rag"]["sources"] != []
    assert first["rag"]["citations"] == []
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert [each["type"] for each in first["choices"][0]["delta"]["annotations"]] == ["source", "source"]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert {citation["method"] for citation in last["rag"]["citations"]} == {"overlap", "marker"}
    _check_rag(last["rag"], said)
    assert all("rag" not in chunk for chunk in chunks[1:-1])
    assert [each["index"] for each in stream.annotations()] == list(range(len(stream.annotations())))


def test_stream_without_usage_has_choices_in_every_chunk(layered: Layered) -> None:
    stream = Streamed.of(layered.chat({"model": "tiny@atlas", "messages": _ask("cable"), "stream": True}))
    assert all(chunk["choices"] for chunk in stream.chunks)


def test_official_accumulator_gets_the_annotations(client: OpenAI) -> None:
    messages = _saying(f"{CABLE} So they say [1].")
    whole = client.chat.completions.create(model="tiny@atlas", messages=messages)
    with client.chat.completions.stream(model="tiny@atlas", messages=messages) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.content == whole.choices[0].message.content
    given = [{k: v for k, v in each.to_dict().items() if k != "index"} for each in message.annotations]
    sources, citations = given[:2], given[2:]
    assert [each["source"]["file_id"] for each in sources] == [each["file_id"] for each in whole.rag["sources"]]
    assert citations == [each.to_dict() for each in whole.choices[0].message.annotations] != []


def test_every_choice_is_annotated(client: OpenAI, layered: Layered) -> None:
    messages = _saying(CABLE)
    whole = client.chat.completions.create(model="tiny@atlas", messages=messages, n=2)
    assert [len(choice.message.annotations) for choice in whole.choices] == [2, 2]
    body = {"model": "tiny@atlas", "messages": messages, "n": 2, "stream": True}
    stream = Streamed.of(layered.chat(body))
    for index in (0, 1):
        assert stream.text(index) == CABLE
        types = [each["type"] for each in stream.annotations(index)]
        assert types == ["source", "source", "url_citation", "file_citation"]
        assert [each["index"] for each in stream.annotations(index)] == [0, 1, 2, 3]
    assert sum("rag" in chunk for chunk in stream.chunks) == 2


def test_documents_without_an_address_have_no_url_citation(client: OpenAI) -> None:
    said = KITCHEN[0].text
    answer = client.chat.completions.create(model="tiny@kitchen", messages=_saying(said, about="rye bread"))
    assert [each.type for each in answer.choices[0].message.annotations] == ["file_citation"]


def test_own_documents_are_cited(client: OpenAI) -> None:
    text = "Walnuts from the northern orchard were pressed for lamp oil every autumn."
    own = [{"title": "Nuts", "text": text, "url": "https://nuts.example"}, {"text": "Nothing here."}]
    answer = client.chat.completions.create(model="tiny", messages=_saying(text), extra_body={"documents": own})
    [citation] = answer.rag["citations"]
    assert citation["quote"] == text
    url, _ = answer.choices[0].message.annotations
    assert url.url_citation.url == "https://nuts.example"


def test_texts_come_on_request(client: OpenAI, layered: Layered) -> None:
    body = {"model": "tiny@atlas", "messages": _ask("transatlantic cable"), "include": ["file_search_call.results"]}
    answer = layered.chat(body).json()
    found = answer["choices"][0]["message"]["provider_specific_fields"]["search_results"][0]["data"]
    assert [each["content"][0]["text"] for each in found] == [TEXTS[each["file_id"]] for each in found]
    assert [source["text"] for source in answer["rag"]["sources"]] == [each["content"][0]["text"] for each in found]
    stream = Streamed.of(layered.chat({**body, "stream": True}))
    assert stream.deltas()[0]["provider_specific_fields"]["search_results"][0]["data"] == found
    assert json.dumps(stream.chunks[1:]).count("provider_specific_fields") == 0


def test_the_prompt_comes_on_request(layered: Layered) -> None:
    body = {"model": "tiny@atlas", "messages": _ask("transatlantic cable"), "include": ["rag.messages"]}
    assert layered.chat(body).json()["rag"]["messages"] == layered.asked["messages"]


@pytest.mark.parametrize("model", ["tiny", "tiny@atlas"])
def test_completions(client: OpenAI, layered: Layered, model: str) -> None:
    prompt = f"cable steamship\nsay: {CABLE}"
    grounded = model != "tiny"
    whole = client.completions.create(model=model, prompt=prompt)
    assert whole.choices[0].text == CABLE
    assert len(whole.rag["citations"]) == grounded
    chunks = list(
        client.completions.create(model=model, prompt=prompt, stream=True, stream_options={"include_usage": True})
    )
    *content, usage = chunks
    assert "".join(chunk.choices[0].text for chunk in content) == CABLE
    assert usage.choices == []
    assert bool(content[0].rag["sources"]) == grounded
    assert content[-1].rag["citations"] == whole.rag["citations"]
    if grounded:
        _check_rag(whole.rag, CABLE)


def test_plain_chats_carry_the_release(layered: Layered) -> None:
    rag = layered.chat({"messages": _ask("hello")}).json()["rag"]
    assert (rag["release"], rag["sources"], rag["citations"]) == ("test-release", [], [])
    stream = Streamed.of(layered.chat({"messages": _ask("hello"), "stream": True}))
    assert stream.chunks[0]["rag"]["release"] == "test-release"
    assert stream.annotations() == []


def test_cached_tokens_pass_through(client: OpenAI, layered: Layered) -> None:
    layered.engine.state.prompt_tokens_details = {"cached_tokens": 7}
    answer = client.chat.completions.create(model="tiny@atlas", messages=_ask("cable"))
    assert answer.usage.prompt_tokens_details.cached_tokens == 7


def test_streamed_tool_calls_pass_through(client: OpenAI) -> None:
    function = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    search = {"type": "file_search", "vector_store_ids": ["atlas"]}
    chunks = client.chat.completions.create(
        model="tiny", messages=_ask("cable"), tools=[function, search], tool_choice="required", stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [call.function.name for delta in deltas for call in delta.tool_calls or []] == ["weather"]
    assert deltas[0].annotations


def test_questions_with_the_same_documents_share_a_prefix(open_layer: OpenLayer) -> None:
    layered = open_layer(top_k=8)
    documents, answers = [], []
    for question in ("Which ship laid the cable?", "How many hearts has an octopus?"):
        answers.append(layered.chat({"model": "tiny@atlas", "messages": _ask(question)}).json())
        documents.append(layered.asked["messages"][1]["content"].partition("</documents>")[0])
    assert documents[0] == documents[1]
    scores = [source["score"] for source in answers[1]["rag"]["sources"]]
    ranked = sorted(range(len(scores)), key=lambda n: -scores[n])
    told = f"Most relevant first: {', '.join(str(n + 1) for n in ranked)}."
    assert told in layered.asked["messages"][1]["content"]


@pytest.mark.parametrize("cached", [0, 7])
def test_cached_tokens_stand_in_rag(layered: Layered, cached: int) -> None:
    layered.engine.state.prompt_tokens_details = {"cached_tokens": cached}
    whole = layered.chat({"model": "tiny@atlas", "messages": _ask("cable")}).json()
    stream = Streamed.of(layered.chat({"model": "tiny@atlas", "messages": _ask("cable"), "stream": True}))
    assert whole["rag"]["cached_tokens"] == stream.chunks[-1]["rag"]["cached_tokens"] == cached
    assert layered.recorder.values(PROMPT_TOKENS, {"part": "cached"}) == [cached, cached]
    assert len(layered.recorder.values(PROMPT_TOKENS, {"part": "predicted"})) == 2


def test_an_engine_that_does_not_tell_leaves_it_out(layered: Layered) -> None:
    answer = layered.chat({"model": "tiny@atlas", "messages": _ask("cable")}).json()
    assert "cached_tokens" not in answer["rag"]


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_is_asked_of_the_engine_and_kept_from_who_did_not_ask(
    layered: Layered, path: str, options: dict[str, Any]
) -> None:
    body = {"model": "tiny@atlas", "messages": _ask("cable"), "prompt": "cable", "stream": True, **options}
    body.pop("prompt" if path.endswith("chat/completions") else "messages")
    stream = layered.post(path, body).text
    assert layered.asked["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}
    assert '"choices": []' not in stream.replace('"choices":[]', '"choices": []')
    assert stream.endswith("data: [DONE]\n\n")
    asked = layered.post(path, {**body, "stream_options": {"include_usage": True}}).text
    frames, with_usage = (text.split("\n\n") for text in (stream, asked))
    assert len(with_usage) == len(frames) + 1
    assert '"usage"' in with_usage[-3]
    # As vLLM has it: on the last frame that the client gets, and on that one alone.
    assert [frame.count(FINGERPRINT) for frame in frames[-4:]] == [0, 1, 0, 0]
    assert [frame.count(FINGERPRINT) for frame in with_usage[-5:]] == [0, 0, 1, 0, 0]


def test_a_stream_without_retrieval_is_the_engines_own_but_for_rag(layered: Layered) -> None:
    layered.engine.state.chunk_chars = 1
    body = {"model": "tiny", "messages": _ask("say: Hello there."), "stream": True, "rag_retrieval": "none"}
    ours = layered.chat(body).text.split("\n\n")
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in ours[1:-3]]
    assert ours[-2:] == ["data: [DONE]", ""]
    assert all("rag" not in chunk and "usage" not in chunk for chunk in chunks)


def test_two_choices_keep_their_chunks_in_order(layered: Layered) -> None:
    layered.engine.state.prompt_tokens_details = {"cached_tokens": 3}
    body = {"model": "tiny@atlas", "messages": _saying("One. Two."), "stream": True, "n": 2}
    stream = Streamed.of(layered.chat(body))
    assert stream.done
    assert stream.text(0) == stream.text(1) == "One. Two."
    told = {chunk["choices"][0]["index"]: chunk["rag"] for chunk in stream.chunks if "rag" in chunk}
    assert "cached_tokens" not in told[0], "it has ended before the engine tells"
    assert told[1] == {**told[0], "cached_tokens": 3}
    assert stream.chunks[-1]["rag"] == told[1]


@pytest.mark.parametrize("field", ["prompt_logprobs", "echo"])
def test_an_engine_that_did_not_look_into_its_cache_has_forgotten_nothing(layered: Layered, field: str) -> None:
    body = {"model": "tiny@atlas", "messages": _ask("cable")}
    for cached, scored in ((0, {}), (10_000, {}), (0, {field: 1}), (10_000, {})):
        layered.engine.state.prompt_tokens_details = {"cached_tokens": cached}
        layered.chat({**body, **scored})
    first, second, third = layered.recorder.values(PROMPT_TOKENS, {"part": "predicted"})
    assert (first, second > 0) == (0, True)
    assert third == second


@pytest.mark.parametrize("field", [{"reasoning_effort": "low"}, {"truncation_side": "left"}, {"cache_salt": "s"}])
def test_prompts_that_begin_otherwise_are_not_taken_for_cached(layered: Layered, field: dict[str, str]) -> None:
    body = {"model": "tiny@atlas", "messages": _ask("cable")}
    for each in ({}, field, {}, field):
        layered.chat({**body, **each})
    predicted = layered.recorder.values(PROMPT_TOKENS, {"part": "predicted"})
    assert [tokens > 0 for tokens in predicted] == [False, False, True, True]


def test_with_a_salt_the_order_shows_nothing_of_what_others_ask_for(open_layer: OpenLayer) -> None:
    layered = open_layer(top_k=8)
    tool = {"type": "file_search", "vector_store_ids": ["atlas"], "max_num_results": 1}
    popular = {"tools": [tool], "messages": _ask("Which ship laid the cable?")}
    other = {"model": "tiny@atlas", "messages": _ask("How many hearts has an octopus?")}
    [cable] = [source["file_id"] for source in layered.chat(popular).json()["rag"]["sources"]]
    salted = layered.chat({**other, "cache_salt": "mine"}).json()["rag"]["sources"]
    assert [source["score"] for source in salted] == sorted((source["score"] for source in salted), reverse=True)
    assert salted[0]["file_id"] != cable
    assert layered.chat(other).json()["rag"]["sources"][0]["file_id"] == cable
