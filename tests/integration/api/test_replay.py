"""Which release answers, and asking again for what it has answered."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rag_stack.cli.main import app
from tests.integration.api.conftest import OpenLayer
from tests.integration.api.layered import VERSION, Layered, Streamed

NAMED = f"test-release@{VERSION}"
BODY = {
    "messages": [{"role": "user", "content": "transatlantic cable"}],
    "vector_store_ids": ["atlas"],
    "temperature": 0,
    "seed": 7,
    "include": ["rag.replay"],
}


@pytest.fixture
def saved(layered: Layered, tmp_path: Path) -> Path:
    """A recorded answer."""
    file = tmp_path / "answer.json"
    file.write_text(layered.chat(BODY).text)
    return file


def replay(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def test_every_answer_names_its_release(layered: Layered) -> None:
    whole = layered.chat({**BODY, "include": []})
    rag = whole.json()["rag"]
    assert (rag["release"], rag["release_version"], whole.headers["x-rag-release"]) == ("test-release", VERSION, NAMED)
    assert "replay" not in rag
    stream = layered.chat({**BODY, "stream": True})
    assert stream.headers["x-rag-release"] == NAMED
    assert Streamed.of(stream).chunks[0]["rag"]["release_version"] == VERSION


@pytest.mark.parametrize("body", [{"messages": []}, {"model": "other"}])
def test_refusals_name_it_too(layered: Layered, body: dict[str, Any]) -> None:
    reply = layered.chat(body)
    assert (reply.status_code // 100, reply.headers["x-rag-release"]) == (4, NAMED)
    assert layered.post("/v1/nothing", {}).headers["x-rag-release"] == NAMED


def test_an_unpublished_release_has_its_name_alone(open_layer: OpenLayer) -> None:
    reply = open_layer(release_version="").chat({"messages": BODY["messages"]})
    assert reply.headers["x-rag-release"] == "test-release"
    assert "release_version" not in reply.json()["rag"]


def test_the_record_is_what_the_engine_got(layered: Layered) -> None:
    record = layered.chat(BODY).json()["rag"]["replay"]
    assert record["request"] == layered.asked
    assert (record["request"]["seed"], record["request"]["temperature"]) == (7, 0)
    assert (record["store"], record["index_version"], record["release_version"]) == ("atlas", "atlas-v1", VERSION)
    assert {(p["passage_id"], len(p["sha256"])) for p in record["passages"]} == {
        (source["passage_id"], 64) for source in layered.chat(BODY).json()["rag"]["sources"]
    }


def test_a_stream_records_with_its_last_block_alone(layered: Layered) -> None:
    chunks = Streamed.of(layered.chat({**BODY, "stream": True})).chunks
    blocks = [chunk["rag"] for chunk in chunks if "rag" in chunk]
    assert ["replay" in block for block in blocks] == [False, True]
    asked = {k: v for k, v in layered.asked.items() if k not in ("stream", "stream_options")}
    assert blocks[-1]["replay"]["request"] == asked


def test_an_answer_is_reproduced_without_retrieval(layered: Layered, saved: Path) -> None:
    recorded = json.loads(saved.read_text())["rag"]["replay"]
    result = replay(saved, "--server", layered.url)
    assert (result.exit_code, result.stdout.split(":")[0]) == (0, "equal"), result.output
    assert layered.asked == recorded["request"]


def test_the_default_store_is_not_searched_again(open_layer: OpenLayer, tmp_path: Path) -> None:
    served = open_layer(default_store="atlas")
    file = tmp_path / "answer.json"
    file.write_text(served.chat({**BODY, "vector_store_ids": None}).text)
    asked = served.asked
    assert replay(file, "--server", served.url).exit_code == 0
    assert served.asked["messages"] == asked["messages"]


def test_another_answer_is_shown_as_a_difference(layered: Layered, saved: Path) -> None:
    layered.engine.state.answer = "Something else."
    result = replay(saved, "--server", layered.url)
    assert result.exit_code == 1
    assert "+Something else." in result.stdout
    told = json.loads(replay(saved, "--server", layered.url, "--json").stdout)
    assert (told["equal"], told["after"]) == (False, "Something else.")


def test_another_release_version_is_refused_unless_told(open_layer: OpenLayer, saved: Path) -> None:
    served = open_layer(release_version="ba9876543210")
    result = replay(saved, "--server", served.url)
    assert (result.exit_code, "--any-release" in result.stderr) == (1, True)
    assert replay(saved, "--server", served.url, "--any-release").exit_code == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [("no", "cannot read"), ("{}", "rag.replay"), ('{"rag": {"replay": {}}}', "not a record"), ("[]", "rag.replay")],
)
def test_what_is_no_record_is_said(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "answer.json"
    file.write_text(text)
    result = replay(file)
    assert (result.exit_code, told in result.stderr) == (1, True), result.stderr


def test_a_completion_is_reproduced_too(layered: Layered, tmp_path: Path) -> None:
    body = {"model": "tiny", "prompt": "cable", "include": ["rag.replay"], "vector_store_ids": ["atlas"]}
    file = tmp_path / "answer.json"
    file.write_text(layered.post("/v1/completions", body).text)
    assert replay(file, "--server", layered.url).exit_code == 0
