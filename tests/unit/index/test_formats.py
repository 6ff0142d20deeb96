"""Every format through one door, rows as they come, and the bounds on what is taken."""

import io
import json
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rag_stack.errors import DocumentError
from rag_stack.index.documents import Document, Documents, iter_documents, parse, read_documents
from rag_stack.index.format import Chunking
from rag_stack.index.rows import json_rows
from rag_stack.index.spec import MAX_DOCUMENT_BYTES, IndexSpec
from tests.pdf import pdf


def _spec(folder: Path, *, source: dict[str, Any] | None = None, **settings: Any) -> IndexSpec:
    source = {"folder": folder, **(source or {})}
    return IndexSpec.model_validate({"name": "docs", "embedder": {"name": "words"}, "source": source, **settings})


def _reasons(read: Documents) -> dict[str, str]:
    return {each.document: each.reason for each in read.skipped}


def test_all_formats_are_taken_by_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.md").write_text("# Mark")
    (tmp_path / "c.html").write_text("<title>Page</title><h1>Head</h1>")
    (tmp_path / "d.htm").write_text("<h1>Head</h1>")
    (tmp_path / "e.pdf").write_bytes(pdf([["Printed"]]))
    (tmp_path / "f.jsonl").write_text('{"id": 7, "text": "row"}\n')
    pq.write_table(pa.table({"id": ["p"], "text": ["column"]}), tmp_path / "g.parquet")
    read = read_documents(_spec(tmp_path))
    assert [(each.title, each.text, each.text_format) for each in read.documents] == [
        ("a.txt", "text", "text"),
        ("b.md", "# Mark", "markdown"),
        ("Page", "# Head\n", "markdown"),
        ("d.htm", "# Head\n", "markdown"),
        ("e.pdf", "Printed\n", "text"),
        ("", "row", "text"),
        ("", "column", "text"),
    ]
    assert read.skipped == ()


def test_a_format_that_is_named_goes_for_every_file(tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("<p>one")
    assert read_documents(_spec(tmp_path, source={"format": "html"})).documents[0].text == "one\n"


def test_parquet_gives_the_fields_of_json_lines(tmp_path: Path) -> None:
    fields = pa.struct([("kind", pa.string()), ("n", pa.int64())])
    table = pa.table(
        {
            "id": pa.array([1, 2, 3]),
            "text": ["one", "two", None],
            "title": ["First", None, "Third"],
            "uri": [None, "https://x.example/2", None],
            "attributes": pa.array([{"kind": "k", "n": 5}, {"kind": None, "n": 6}, None], fields),
            "day": [date(2024, 5, 1), None, None],
            "at": [datetime(2024, 5, 1, 12, tzinfo=UTC)] * 3,
            "draft": [True, False, True],
            "vector": [[0.5] * 4] * 3,
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    spec = _spec(tmp_path, source={"attribute_columns": ["day", "at", "draft"]}, uri="https://x.example/{name}")
    read = read_documents(spec)
    first, second = read.documents
    assert (first.title, first.uri, first.text) == ("First", "https://x.example/1", "one")
    assert first.attributes == {
        **{"kind": "k", "n": 5.0, "day": "2024-05-01", "at": "2024-05-01T12:00:00+00:00", "draft": True},
        **{"path": "rows.parquet", "filename": "1"},
    }
    assert (second.title, second.uri, second.attributes["n"]) == ("", "https://x.example/2", 6.0)
    assert "kind" not in second.attributes
    assert "day" not in second.attributes
    assert _reasons(read) == {"rows.parquet:3": "lacks 'text'"}


def test_a_map_column_holds_attributes_too(tmp_path: Path) -> None:
    attributes = pa.array([[("lang", "en")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], "attributes": attributes}), tmp_path / "rows.parquet")
    assert read_documents(_spec(tmp_path)).documents[0].attributes["lang"] == "en"


def test_columns_of_json_lines_can_be_attributes_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "1", "text": "x", "year": 2024, "attributes": {"k": "v"}}\n')
    (document,) = read_documents(_spec(tmp_path, source={"attribute_columns": ["year", "absent"]})).documents
    assert document.attributes == {"year": 2024.0, "k": "v", "path": "rows.jsonl", "filename": "1"}


def test_a_broken_parquet_file_is_named_and_its_good_rows_kept(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["x"]}), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-9])
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "junk.parquet").write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1")
    pq.write_table(pa.table({"name": ["a"], "text": ["x"]}), tmp_path / "other.parquet")
    raw = pa.array([b"good", b"caf\xe9"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"id": ["1", "2"], "text": raw}), tmp_path / "latin.parquet")
    read = read_documents(_spec(tmp_path))
    assert [document.attributes["path"] for document in read.documents] == ["good.parquet", "latin.parquet"]
    reasons = _reasons(read)
    for name in ("cut.parquet", "empty.parquet", "junk.parquet"):
        assert reasons[name].startswith("is not a Parquet file that can be read"), reasons[name]
    assert reasons["other.parquet"] == "lacks the columns ['id']; it has ['name', 'text']"
    assert "can't decode byte 0xe9" in reasons["latin.parquet:2"]


def test_what_is_too_large_is_named_with_the_limit(tmp_path: Path) -> None:
    (tmp_path / "exact.txt").write_bytes(b"x" * 100)
    (tmp_path / "large.txt").write_bytes(b"x" * 101)
    (tmp_path / "large.pdf").write_bytes(b"%PDF" * 30)
    rows = [{"id": "1", "text": "y"}, {"id": "2", "text": "y" * 200}, {"id": "3", "text": "z"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["y" * 101, "ok"]}), tmp_path / "rows.parquet")
    read = read_documents(_spec(tmp_path, max_document_bytes=100))
    assert [document.text for document in read.documents] == ["x" * 100, "y", "z", "ok"]
    expected = "has {} bytes, the limit is 100; raise `max_document_bytes`, or split it"
    assert _reasons(read) == {
        "large.txt": expected.format(101),
        "large.pdf": expected.format(120),
        "rows.jsonl:2": expected.format(223),
        "rows.parquet:1": expected.format(101),
    }


def test_the_limit_is_32_mib_unless_told(tmp_path: Path) -> None:
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    (tmp_path / "small.txt").write_text("small")
    assert _reasons(read_documents(_spec(tmp_path))) == {
        "huge.txt": "has 33,554,433 bytes, the limit is 33,554,432; raise `max_document_bytes`, or split it"
    }


class _Endless(io.RawIOBase):
    """Lines that are made as they are read, one of them far too long."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    def read(self, size: int = -1, /) -> bytes:
        return next(self._pieces, b"")


def test_json_lines_are_not_held_in_memory() -> None:
    line = json.dumps({"id": "1", "text": "x" * 10_000}).encode() + b"\n"

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield line * 100
        for _ in range(100):
            yield b"y" * 1_000_000
        yield b"\n" + line + b"[1"

    tracemalloc.start()
    try:
        rows = good = 0
        wrong = []
        for number, row in json_rows(_Endless(pieces()), max_bytes=1 << 20):  # type: ignore[arg-type]
            rows += 1
            if isinstance(row, str):
                wrong.append((number, row))
            else:
                good += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (rows, good) == (10_003, 10_001)
    assert wrong[0] == (
        10_001,
        "has 100,000,000 bytes, the limit is 1,048,576; raise `max_document_bytes`, or split it",
    )
    assert wrong[1][0] == 10_003
    assert peak < 20_000_000, "200 MB went through"


def test_rows_of_a_file_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": "x" * 1000}) + "\n" for n in range(20_000)))
    documents = iter_documents(_spec(tmp_path))
    assert isinstance(next(documents), Document)
    documents.close()


def test_bytes_that_were_uploaded_are_parsed() -> None:
    chunking = Chunking(max_tokens=64, overlap_tokens=0)
    document = parse(b"<title>T</title><p>body", filename="a.html", attributes={"n": 1}, chunking=chunking)
    assert (document.title, document.text, document.text_format) == ("T", "body\n", "markdown")
    assert document.attributes == {"n": 1.0, "path": "a.html", "filename": "a.html"}
    assert document.chunking == chunking
    given = parse(b"x", filename="a.txt", document_id="file-7", path="files/7", title="Given", uri="https://x.example/")
    assert (given.document_id, given.title, given.uri) == ("file-7", "Given", "https://x.example/")
    assert given.attributes == {"path": "files/7", "filename": "a.txt"}
    assert parse(b"# x", filename="noname", format="markdown").text_format == "markdown"
    assert parse(b"def f(): pass", filename="code.py").text_format == "text"


@pytest.mark.parametrize(
    ("data", "filename", "reason"),
    [
        (b"", "a.txt", "is empty"),
        (b" \n", "a.pdf", "is empty"),
        (b"PK\x03\x04\x00", "a.docx", "is binary"),
        (b"caf\xe9", "a.txt", "is not UTF-8"),
        ("café".encode("utf-16"), "a.txt", "is UTF-16; convert it"),
        (b"x", "a.pdf", "is not a PDF"),
        (b"<script>x</script>", "a.html", "holds no text"),
        (b'{"id": "1"}', "a.jsonl", "holds many documents"),
        (b"PAR1", "a.PARQUET", "holds many documents"),
        (b"x" * 65, "a.txt", "the limit is 64"),
    ],
)
def test_an_upload_that_cannot_be_parsed_says_why(data: bytes, filename: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(data, filename=filename, max_bytes=64)


@pytest.mark.parametrize(
    "attributes", [{"k": None}, {"k": [1]}, {"k": float("nan")}, {"k": 10**400}, {"": "x"}, {"k" * 65: "x"}]
)
def test_attributes_that_cannot_be_kept_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(DocumentError, match="attribute"):
        parse(b"x", filename="a.txt", attributes=attributes)


def test_the_digest_follows_the_chunking() -> None:
    plain = parse(b"x", filename="a.txt")
    chunked = parse(b"x", filename="a.txt", chunking=Chunking(max_tokens=64, overlap_tokens=0))
    assert plain.digest == parse(b"x", filename="a.txt").digest != chunked.digest
