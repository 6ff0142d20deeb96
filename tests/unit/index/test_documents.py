"""What is read from a source, and what is said about what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from rag_stack.errors import ConfigError, IndexVersionError
from rag_stack.index.documents import Documents, read_documents
from rag_stack.index.spec import IndexSpec, load_spec

_SPEC = "name: d\nembedder: {{name: w}}\n{}\n"


def _read(folder: Path, *, source: dict[str, Any] | None = None, **settings: Any) -> Documents:
    spec = {"name": "docs", "embedder": {"name": "words"}, "source": {"folder": folder, **(source or {})}, **settings}
    return read_documents(IndexSpec.model_validate(spec))


def test_files_become_documents_with_stable_ids(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "Notes.md").write_text("# Notes\n")
    (tmp_path / "a.txt").write_bytes("\ufeffräksmörgås\r\n".encode())
    read = _read(tmp_path, uri="https://docs.example/{path}#{stem}", attributes={"team": "docs", "year": 2024})
    first, second = read.documents
    assert first.text == "räksmörgås\r\n", "verbatim but for the byte order mark"
    assert (first.title, first.uri, first.text_format) == ("a.txt", "https://docs.example/a.txt#a", "text")
    assert second.attributes == {"path": "sub/Notes.md", "filename": "Notes.md", "team": "docs", "year": 2024.0}
    assert (second.uri, second.text_format) == ("https://docs.example/sub/Notes.md#Notes", "markdown")
    assert first.document_id.startswith("file-")
    assert [d.document_id for d in _read(tmp_path).documents] == [first.document_id, second.document_id]
    assert read.skipped == ()


def test_patterns_include_and_exclude(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.rst"):
        (tmp_path / name).write_text(name)
    read = _read(tmp_path, source={"include": ["*.txt", "*.rst"], "exclude": ["b.*"]})
    assert [document.attributes["path"] for document in read.documents] == ["a.txt", "c.rst"]


def _bad_folder(folder: Path) -> None:
    (folder / "good.txt").write_text("good")
    (folder / "empty.txt").write_text(" \n")
    (folder / "nul.txt").write_bytes(b"PK\x00\x01")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    _bad_folder(tmp_path)
    read = _read(tmp_path)
    assert [document.attributes["filename"] for document in read.documents] == ["good.txt"]
    assert {each.document: each.reason for each in read.skipped} == {
        "empty.txt": "is empty",
        "latin.txt": "is not UTF-8 (byte 3); convert it",
        "nul.txt": "is binary: it holds NUL bytes",
    }


def test_json_lines(tmp_path: Path) -> None:
    good = {
        "id": "42",
        "title": "T",
        "text": "body",
        "uri": "https://x.example/",
        "attributes": {"n": 1, "draft": True},
    }
    lines = [
        json.dumps(good),
        "",
        "{not json",
        "[1]",
        json.dumps({"id": "1"}),
        json.dumps({"id": "2", "text": 5}),
        json.dumps({"id": "3", "text": "x", "attributes": {"k": None}}),
        json.dumps({"id": "4", "text": "x", "colour": "red"}),
        json.dumps({"id": "42", "text": "again"}),
        '{"id": "5", "text": "\\ud800"}',
        json.dumps({"id": "6", "text": "x", "attributes": {f"k{n}": n for n in range(17)}}),
        json.dumps({"id": "7", "text": "x", "attributes": {"n": float("inf")}}),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    read = _read(tmp_path)
    (document,) = read.documents
    assert (document.text, document.title, document.uri) == ("body", "T", "https://x.example/")
    assert document.attributes == {"n": 1.0, "draft": True, "path": "rows.jsonl", "filename": "42"}
    assert type(document.attributes["draft"]) is bool
    reasons = [each.reason for each in read.skipped]
    assert len(reasons) == 10
    for expected, reason in zip(
        (
            "is not a JSON line",
            "is a JSON list, expected an object",
            "lacks 'text'",
            "'text' must be str, got int",
            "attribute 'k' must be a string",
            "unknown fields ['colour']",
            "its id was used by an earlier document",
            "half a surrogate pair",
            "has 17 attributes",
            "finite number",
        ),
        reasons,
        strict=True,
    ):
        assert expected in reason
    assert read.skipped[0].document == "rows.jsonl:3"


def test_a_metadata_file_gives_titles_and_uris(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    rows = [
        {"path": "a.txt", "title": "First", "uri": "https://x.example/a#1", "attributes": {"kind": "letter"}},
        {"path": "gone.txt", "title": "Gone"},
    ]
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = _read(tmp_path, source={"metadata": "meta.jsonl"})
    first, second = read.documents
    assert (first.title, first.uri, first.attributes["kind"]) == ("First", "https://x.example/a#1", "letter")
    assert (second.title, second.uri) == ("b.txt", "")
    assert [each.reason for each in read.skipped] == ["names the file 'gone.txt', which is not in the source"]


def test_an_empty_folder_has_no_documents_and_one_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert _read(tmp_path) == Documents((), ())
    with pytest.raises(IndexVersionError, match="does not exist"):
        _read(tmp_path / "nowhere")


def test_the_digest_follows_everything_that_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    digests = {
        _read(tmp_path, **settings).documents[0].digest
        for settings in ({}, {"uri": "x"}, {"attributes": {"k": 1}}, {"source": {"format": "markdown"}})
    }
    (tmp_path / "a.txt").write_text("b")
    assert len(digests | {_read(tmp_path).documents[0].digest}) == 5


def test_a_spec_file_is_read_and_its_folder_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    path = tmp_path / "specs" / "docs.yaml"
    path.write_text("name: docs\nembedder: {name: words}\nsource: {folder: ../corpus}\n")
    spec = load_spec(path)
    assert spec.source.folder == str(tmp_path / "corpus")
    assert spec.chunking is not None
    assert (spec.chunking.max_tokens, spec.recipe, spec.on_error) == (200, "auto", "skip")


def test_a_spec_says_what_must_hold(tmp_path: Path) -> None:
    path = tmp_path / "docs.yaml"
    canary = "{question: Who burns it, expect: [lighthouse.txt]}"
    path.write_text(_SPEC.format(f"source: {{folder: 's3://docs/town'}}\ngates: {{canaries: [{canary}]}}"))
    spec = load_spec(path)
    assert (spec.source.folder, spec.source.remote) == ("s3://docs/town", True)
    assert (spec.gates.min_documents, spec.gates.max_shrink, spec.gates.min_recall) == (1, 0.5, 0.9)
    assert (spec.gates.canaries[0].expect, spec.gates.canaries[0].top_k) == (("lighthouse.txt",), 5)
    assert (spec.recall_target, spec.recall_at, spec.memory_budget_bytes) == (0.95, 10, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold a mapping"),
        (":\n:", "is not YAML"),
        ("name: docs\nembedder: {name: words}\nsource: {folder: x}\ncolour: red\n", "colour: Extra inputs"),
        ("name: ../docs\nembedder: {name: words}\nsource: {folder: x}\n", "name: String should match"),
        ("name: docs\nembedder: {name: words}\nsource: {folder: x}\nuri: '{nope}'\n", "uri may use {path}"),
        (
            "name: d\nembedder: {name: w}\nsource: {folder: x}\nchunking: {max_tokens: 20, overlap_tokens: 11}\n",
            "at most half of max_tokens",
        ),
        (_SPEC.format("source: {folder: 's3:///x'}"), "must be a folder or s3://bucket/prefix"),
        (_SPEC.format("source: {folder: 'https://x.example/'}"), "must be a folder or s3://bucket/prefix"),
        (_SPEC.format("source: {folder: x, include: ['../*.txt']}"), "a pattern names what is in the source"),
        (_SPEC.format("source: {folder: x, attribute_columns: [id]}"), "other columns than a document's own"),
        (_SPEC.format("source: {folder: x}\nsearch_parameters: nprobe=4"), "the recipe is auto"),
        (_SPEC.format("source: {folder: x}\nrecipe: Flat\nmemory_budget_bytes: 9"), "chooses a recipe"),
        (_SPEC.format("source: {folder: x}\ngates: {max_shrink: 2}"), "gates.max_shrink"),
        (_SPEC.format("source: {folder: x}\ngates: {canaries: [{question: q, expect: []}]}"), "canaries.0.expect"),
        (_SPEC.format("source: {folder: x}\nrecall_target: 0"), "recall_target"),
        (_SPEC.format("source: {folder: x}\nmax_document_bytes: 0"), "max_document_bytes"),
    ],
)
def test_a_wrong_spec_names_the_file_and_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "docs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"docs\.yaml") as caught:
        load_spec(path)
    assert message in caught.value.message


def test_a_missing_spec_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the index spec"):
        load_spec(tmp_path / "nowhere.yaml")
