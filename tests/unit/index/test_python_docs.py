"""The demo's corpus: exported by the program beside its spec."""

import json
import re
import runpy
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest

from rag_stack.index.documents import read_documents
from rag_stack.index.spec import load_spec

_INDEXES = Path(__file__).parents[3] / "indexes"
_URI = re.compile(
    r"https://docs\.python\.org/3\.11/"
    r"(reference/[a-z_]+\.html#[a-z-]+|library/(stdtypes|string|pdb)\.html#[a-z-]+|library/[a-z0-9.]+\.html)"
)


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(_INDEXES / "python_docs.py"))


@pytest.fixture(scope="module")
def corpus(program: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    assert program["export"](folder) == len(list(folder.glob("*.txt")))
    return folder


def _rows(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "documents.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_topic_has_one_page(program: dict[str, Any]) -> None:
    labels = [label for labels in program["LABELS"].values() for label in labels.split()]
    assert sorted(labels) == sorted(topics.topics)


def test_every_uri_is_a_page_of_the_documentation(corpus: Path) -> None:
    rows = _rows(corpus)
    assert len(rows) > 140
    assert [row["uri"] for row in rows if not _URI.fullmatch(row["uri"])] == []
    assert len({row["uri"] for row in rows}) == len(rows)
    uris = {row["path"]: row["uri"] for row in rows}
    assert uris["with.txt"] == "https://docs.python.org/3.11/reference/compound_stmts.html#with"
    assert uris["library-os.path.txt"] == "https://docs.python.org/3.11/library/os.path.html"


def test_topics_are_whole_and_modules_are_not_empty(corpus: Path) -> None:
    assert (corpus / "lambda.txt").read_text(encoding="utf-8") == topics.topics["lambda"]
    for path in corpus.glob("library-*.txt"):
        text = path.read_text(encoding="utf-8")
        assert len(text) > 250, path.name
        assert " at 0x" not in text, "an address would make each export another corpus"


def test_an_export_is_the_same_each_time(program: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    program["export"](tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in corpus.iterdir()}


def test_the_spec_reads_the_corpus_without_loss(corpus: Path) -> None:
    spec = load_spec(_INDEXES / "python-docs.yaml")
    assert spec.source.folder == str(_INDEXES.parent / "var" / "corpora" / "python-docs")
    found = read_documents(spec.model_copy(update={"source": spec.source.model_copy(update={"folder": str(corpus)})}))
    assert found.skipped == ()
    assert len(found.documents) == len(_rows(corpus))
    kinds = {document.attributes["kind"] for document in found.documents}
    assert kinds == {"reference", "library"}
