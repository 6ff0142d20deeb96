"""Five ways to ask for retrieval; the first that matches wins, and the engine hears of none."""

from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.integration.api.conftest import OpenLayer
from tests.integration.api.layered import SYSTEM, Layered

QUESTION = [{"role": "user", "content": "Which ship laid the transatlantic cable?"}]
OURS = ("vector_store_ids", "documents", "include")
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
OWN = [{"title": "Mine", "text": "The caller's own passage speaks about walnuts."}]
IN_TOOL: dict[str, Any] = {"tools": [{"type": "file_search", "vector_store_ids": ["atlas"]}]}
IN_KITCHEN: dict[str, Any] = {"vector_store_ids": ["kitchen"]}


def _rag(layered: Layered, **body: Any) -> dict[str, Any]:
    response = layered.chat({"messages": QUESTION, **body})
    assert response.status_code == 200, response.text
    return dict(response.json()["rag"])


@pytest.mark.parametrize(
    "body",
    [
        IN_TOOL,
        {"tools": [{"type": "file_search", "file_search": {"vector_store_ids": ["atlas"]}}]},
        {"vector_store_ids": ["atlas"]},
        {"model": "tiny@atlas"},
    ],
    ids=["tool", "nested tool", "top level", "alias"],
)
def test_asks_a_store(layered: Layered, body: dict[str, Any]) -> None:
    rag = _rag(layered, **body)
    assert (rag["store"], rag["index_version"], rag["release"]) == ("atlas", "atlas-v1", "test-release")
    assert "cable" in [source["file_id"] for source in rag["sources"]]
    prompt = layered.asked["messages"]
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[0]["content"].startswith(SYSTEM)
    assert "Great Eastern" in prompt[1]["content"]
    assert prompt[1]["content"].endswith(QUESTION[0]["content"])
    assert layered.asked["model"] == "tiny"
    assert not {*OURS, "tools", "tool_choice"} & layered.asked.keys()


def test_asks_with_own_passages(layered: Layered) -> None:
    rag = _rag(layered, documents=OWN)
    assert [source["title"] for source in rag["sources"]] == ["Mine"]
    assert "store" not in rag
    assert "walnuts" in layered.asked["messages"][1]["content"]
    assert not layered.asked.keys() & set(OURS)


def test_asks_for_nothing_and_gets_the_plain_model(layered: Layered) -> None:
    rag = _rag(layered)
    assert (rag["sources"], rag["citations"], rag["release"]) == ([], [], "test-release")
    assert layered.asked["messages"] == QUESTION


def test_asks_for_nothing_and_gets_the_default_store(open_layer: OpenLayer) -> None:
    assert _rag(open_layer(default_store="atlas"))["store"] == "atlas"


@pytest.mark.parametrize(
    ("body", "store"),
    [
        ({**IN_TOOL, **IN_KITCHEN, "model": "tiny@kitchen", "documents": OWN}, "atlas"),
        ({**IN_KITCHEN, "model": "tiny@atlas", "documents": OWN}, "kitchen"),
        ({"model": "tiny@kitchen", "documents": OWN}, "kitchen"),
        ({"documents": OWN}, None),
    ],
)
def test_first_match_wins(open_layer: OpenLayer, body: dict[str, Any], store: str | None) -> None:
    layered = open_layer(default_store="atlas")
    assert _rag(layered, **body).get("store") == store
    assert layered.asked["model"] == "tiny"
    assert not layered.asked.keys() & {*OURS, "tools"}


def test_null_means_not_asked(layered: Layered) -> None:
    rag = _rag(layered, vector_store_ids=None, documents=None, include=None, tools=None)
    assert rag["sources"] == []


def test_settings_of_the_tool_count(layered: Layered) -> None:
    filters = {"type": "eq", "key": "topic", "value": "nature"}
    tool = {"type": "file_search", "vector_store_ids": ["atlas"], "max_num_results": 3, "filters": filters}
    assert {source["file_id"] for source in _rag(layered, tools=[tool])["sources"]} == {
        "glacier",
        "honeybee",
        "octopus",
    }
    none = {**tool, "ranking_options": {"score_threshold": 0.99}}
    assert _rag(layered, tools=[none])["sources"] == []
    nulls = {**tool, "filters": None, "max_num_results": None, "ranking_options": None}
    assert len(_rag(layered, tools=[nulls])["sources"]) == 2


def test_function_tools_work_with_retrieval(client: OpenAI, layered: Layered) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, tools=[*IN_TOOL["tools"], FUNCTION], tool_choice="required"
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["weather"]
    assert layered.asked["tools"] == [FUNCTION]
    assert layered.asked["tool_choice"] == "required"
    assert "Great Eastern" in layered.asked["messages"][1]["content"]
    assert answer.rag["sources"]


def test_function_results_come_back(layered: Layered) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    rag = _rag(layered, messages=turns, tools=[*IN_TOOL["tools"], FUNCTION])
    assert "cable" in [source["file_id"] for source in rag["sources"]]
    assert layered.asked["messages"][2:] == turns[1:]


def test_a_choice_of_file_search_is_not_passed_on(layered: Layered) -> None:
    body = {"tools": [*IN_TOOL["tools"], FUNCTION], "tool_choice": {"type": "file_search"}}
    _rag(layered, **body)
    assert "tool_choice" not in layered.asked


@pytest.mark.parametrize("in_tool", [True, False])
def test_several_stores_are_searched_together(layered: Layered, in_tool: bool) -> None:
    ids = ["atlas", "kitchen", "atlas"]
    body: dict[str, Any] = {"vector_store_ids": ids}
    if in_tool:
        body = {"tools": [{"type": "file_search", "vector_store_ids": ids, "max_num_results": 50}]}
    rag = _rag(layered, **body, include=["rag.replay"])
    assert ("store" in rag, "index_version" in rag) == (False, False)
    assert rag["index_versions"] == {"atlas": "atlas-v1", "kitchen": "kitchen-v1"}
    assert {source["store"] for source in rag["sources"]} <= {"atlas", "kitchen"}
    if in_tool:
        assert {source["store"] for source in rag["sources"]} == {"atlas", "kitchen"}
    assert rag["replay"]["index_versions"] == rag["index_versions"]


def test_one_missing_store_of_several_is_404(client: OpenAI, layered: Layered) -> None:
    with pytest.raises(NotFoundError, match="cellar"):
        client.chat.completions.create(
            model="tiny", messages=QUESTION, extra_body={"vector_store_ids": ["atlas", "cellar"]}
        )
    assert layered.engine.state.requests == []


def test_a_ranker_is_honoured_and_an_unknown_one_is_told_which_there_are(client: OpenAI, layered: Layered) -> None:
    for options in (
        {"ranker": "auto"},
        {"ranker": "default-2024-11-15"},
        {"ranker": "lexical"},
        {"hybrid_search": {"embedding_weight": 1.0, "text_weight": 3.0}},
    ):
        tool = {"type": "file_search", "vector_store_ids": ["atlas"], "ranking_options": options}
        assert _rag(layered, tools=[tool])["store"] == "atlas"
    tool = {"type": "file_search", "vector_store_ids": ["atlas"], "ranking_options": {"ranker": "best"}}
    with pytest.raises(BadRequestError, match="'auto', 'none', 'default-2024-11-15', 'hybrid', 'dense' or 'lexical'"):
        client.chat.completions.create(model="tiny", messages=QUESTION, tools=[tool])  # type: ignore[list-item]


@pytest.mark.parametrize("model", ["nope", "tiny@nope", "nope@atlas", "@atlas", "tiny@", "tiny@atlas@kitchen"])
def test_unknown_names_are_404(client: OpenAI, layered: Layered, model: str) -> None:
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model=model, messages=QUESTION)
    assert layered.engine.state.requests == []


def test_completions_are_grounded_when_they_ask(open_layer: OpenLayer) -> None:
    layered = open_layer(default_store="atlas")
    with layered.openai() as client:
        plain = client.completions.create(model="tiny", prompt="Once upon a time")
        assert layered.asked["prompt"] == "Once upon a time"
        asked = client.completions.create(model="tiny@atlas", prompt=["Which ship laid the transatlantic cable?"])
    assert plain.rag["sources"] == []
    assert "Great Eastern" in layered.asked["prompt"]
    assert layered.asked["model"] == "tiny"
    assert asked.rag["citations"]
    with layered.openai() as client, pytest.raises(BadRequestError, match="one string"):
        client.completions.create(model="tiny@atlas", prompt=["two", "prompts"])


def test_plain_completions_take_all_that_the_engine_takes(client: OpenAI, layered: Layered) -> None:
    client.completions.create(model="tiny", prompt=["one", "two"])
    assert layered.asked["prompt"] == ["one", "two"]


def test_content_as_parts_and_unknown_fields(client: OpenAI, layered: Layered) -> None:
    parts: Any = [{"type": "text", "text": "Which ship laid"}, {"type": "text", "text": "the transatlantic cable?"}]
    answer = client.chat.completions.create(
        model="tiny@atlas",
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
        max_completion_tokens=3,
        user="u",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        reasoning_effort="low",
        extra_body={
            "prompt_cache_key": "k",
            "safety_identifier": "s",
            "verbosity": "low",
            "never_heard_of": {"x": [1]},
        },
        extra_headers={"OpenAI-Beta": "assistants=v2"},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    system, user = layered.asked["messages"]
    assert system == {"role": "system", "content": f"{SYSTEM}\n\nBe brief."}
    assert user["content"][1:] == parts
    assert "Great Eastern" in user["content"][0]["text"]
    assert layered.asked["never_heard_of"] == {"x": [1]}
