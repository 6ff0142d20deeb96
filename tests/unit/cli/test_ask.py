"""`rag-stack ask`, `search`, `key` and `version` against the real layer."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from typer.testing import CliRunner, Result

from rag_stack import __version__
from rag_stack.cli.main import app
from rag_stack.cli.output import printable, shortened
from tests.layer import HARBOUR, build_layer
from tests.servers import closed_port, serve

QUESTION = "When does the harbour of Alden freeze?"
ANSWER = "The harbour of Alden freezes in January and closes to fishing boats."


@pytest.fixture(autouse=True)
def _server_by_environment(layer_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_STACK_BASE_URL", layer_url)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("extra", [[], ["--no-stream"]])
def test_an_answer_with_sources_and_citations(extra: list[str]) -> None:
    done = run("ask", QUESTION, "--store", "town", "--top-k", "1", *extra)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{ANSWER}\n")
    assert "[1]  The harbour  0." in done.stdout
    assert "https://docs.example/harbour" in done.stdout
    assert f"[1] overlap {ANSWER} “{ANSWER}”" in done.stdout
    assert "release test-release@0123456789ab, model tiny, index town v1" in done.stdout


def test_marker_citations_quote_their_passage(engine: Starlette) -> None:
    engine.state.answer = "Boats wait for the thaw [1]."
    done = run("ask", QUESTION, "--top-k", "1")
    assert f"[1] marker  Boats wait for the thaw [1]. “{HARBOUR.text}”" in done.stdout


def test_json_is_all_there_is_on_stdout() -> None:
    done = run("ask", QUESTION, "--top-k", "1", "--json")
    answer = json.loads(done.stdout)
    assert (done.exit_code, done.stderr) == (0, "")
    assert answer["text"] == ANSWER
    assert [source["file_id"] for source in answer["sources"]] == ["harbour"]
    assert [citation["method"] for citation in answer["citations"]] == ["overlap"]
    assert answer["usage"]["prompt_tokens"] > 0


def test_options_reach_the_server(engine: Starlette) -> None:
    done = run("ask", QUESTION, "--max-tokens", "3", "--model", "tiny@town")
    assert done.exit_code == 0
    assert engine.state.requests[-1]["max_tokens"] == 3
    assert "cut off" in done.stdout


@pytest.mark.parametrize("extra", [[], ["--no-stream"], ["--json"]])
def test_a_refusal_is_one_line_on_stderr(extra: list[str]) -> None:
    done = run("ask", QUESTION, "--store", "cellar", *extra)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == "error: the vector store 'cellar' does not exist; there are ['town']\n"


def test_nobody_listens() -> None:
    done = run("ask", QUESTION, "--base-url", f"http://127.0.0.1:{closed_port()}")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "rag-stack serve" in done.stderr


def test_a_failure_in_the_middle_begins_its_own_line(engine: Starlette) -> None:
    engine.state.fail_after_chunks = 3
    done = run("ask", QUESTION, "--top-k", "1")
    assert (done.exit_code, done.stdout) == (1, "The harbour \n")
    assert done.stderr == "error: the engine failed\n"


def test_search() -> None:
    done = run("search", "rye bread with caraway", "--top-k", "2")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith(" 1 0.")
    assert "The bakery" in done.stdout.splitlines()[0]


def test_search_json() -> None:
    done = run("search", "rye bread with caraway", "--top-k", "1", "--json")
    results = json.loads(done.stdout)
    assert (results["store"], results["index_version"]) == ("town", "v1")
    assert [hit["file_id"] for hit in results["hits"]] == ["bakery"]


def test_a_key_and_its_digest_open_a_server(engine: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = json.loads(run("key", "--json").stdout)
    assert made["sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()
    assert json.loads(run("key", "--json").stdout)["key"] != made["key"]
    with serve(build_layer(engine, tmp_path / "locked", keys=[made["key"]])) as url:
        assert run("search", "bread", "--base-url", url).exit_code == 1
        monkeypatch.setenv("RAG_STACK_API_KEY", made["key"])
        assert run("search", "bread", "--base-url", url).exit_code == 0


def test_version() -> None:
    assert run("version").stdout == f"{__version__}\n"


@pytest.mark.parametrize("arguments", [["ask"], ["ask", "q", "--top-k", "0"], ["ask", "q", "--nope"], ["nope"], []])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_ctrl_c_ends_the_answer_and_the_generation(engine: Starlette) -> None:
    engine.state.stall_after_chunks = 2
    command = [sys.executable, "-c", "from rag_stack.cli.main import app; app()", "ask", QUESTION, "--top-k", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(8) == b"The harb"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
    assert engine.state.aborted.wait(10)


def test_a_document_cannot_steer_the_terminal(engine: Starlette) -> None:
    engine.state.answer = "plain\x1b[31mred\x07 \x9b2J[bold]markup[/bold]"
    done = run("ask", QUESTION, "--top-k", "1")
    assert done.stdout.startswith("plain[31mred 2J[bold]markup[/bold]\n")


def test_text_for_one_line() -> None:
    assert printable("a\r\nb\tc\x00") == "a\nb\tc"
    assert shortened("two\n words", 20) == "two words"
    assert shortened("0123456789", 5) == "0123…"
