"""What two versions differ in, and whether one is right and may be promoted."""

import random
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError, GateFailedError, IndexVersionError
from rag_stack.index.difference import Documents, compare, compare_documents, short
from rag_stack.index.format import DOCUMENTS_SCHEMA, IndexMetadata
from rag_stack.index.judgement import promote_index, verify
from rag_stack.index.listing import version_rows
from tests.published import publish_index

with_gates = pytest.mark.skipif("gates" not in IndexMetadata.model_fields, reason="the metadata has no gates yet")
PASSED = {"name": "counts", "passed": True, "detail": "2 of 2"}
FAILED = {"name": "canary 1", "passed": False, "detail": "'who?' does not find 'a.txt'"}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(open_store(f"file://{tmp_path}/store"))


def test_documents_and_settings_are_compared(catalog: Catalog, tmp_path: Path) -> None:
    old = publish_index(catalog, tmp_path, {"a": "rye bread", "b": "old text", "c": "gone"}, version="v1")
    new = publish_index(catalog, tmp_path, {"a": "rye bread", "b": "new text", "d": "come", "e": "too"}, version="v2")
    difference = compare(catalog, old, new)
    assert difference.documents == Documents(2, 1, 1, 1, ("d.txt", "e.txt"), ("c.txt",), ("b.txt",))
    told = difference.to_json()
    assert (told["from"], told["to"]) == ("v1", "v2")
    assert (told["documents"]["from"], told["documents"]["to"]) == (3, 4)
    assert told["passages"] == {"from": 3, "to": 4}
    assert told["size_bytes"] == {"from": old.size_bytes, "to": new.size_bytes}
    assert {"embedder", "dimension", "documents"}.isdisjoint(told["settings"])
    assert compare(catalog, new, new).documents.unchanged == 4


def test_only_the_documents_are_read(catalog: Catalog, tmp_path: Path) -> None:
    old, new = (publish_index(catalog, tmp_path, {"a": version}, version=version) for version in ("v1", "v2"))
    (tmp_path / "store" / str(old.ref) / "index.faiss").unlink()
    assert compare(catalog, old, new).documents.changed == 1
    (tmp_path / "store" / str(new.ref) / "documents.arrow").write_bytes(b"x" * new.files[0].size_bytes)
    with pytest.raises(ArtifactCorruptError, match=r"documents.arrow"):
        compare(catalog, old, new)


def test_another_format_is_not_compared(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("a")
    other = catalog.publish(tmp_path / "other", kind="indexes", name="docs", metadata={}, version="v0")
    new = publish_index(catalog, tmp_path, {"a": "text"}, version="v1")
    with pytest.raises(IndexVersionError, match="has index format None"):
        compare(catalog, other, new)
    with pytest.raises(IndexVersionError, match="has index format None"):
        promote_index(catalog, "docs", "v0", force=True)
    rows, problems = version_rows(catalog, "docs")
    assert [row["version"] for row in rows] == ["v1"]
    assert list(problems) == ["v0"]


def _table(path: Path, documents: Iterable[tuple[str, str]]) -> Path:
    rows = list(documents)
    columns = {
        "document_id": [key for key, _ in rows],
        "digest": [digest for _, digest in rows],
        **{name: [""] * len(rows) for name in ("filename", "title", "uri")},
        **{name: [0] * len(rows) for name in ("characters", "first_row", "passages")},
    }
    table = pa.table(columns, schema=DOCUMENTS_SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


@settings(deadline=None, max_examples=40)
@given(
    before=st.dictionaries(st.text("abcü€", max_size=4), st.sampled_from("xyz")),
    after=st.dictionaries(st.text("abcü€", max_size=4), st.sampled_from("xyz")),
    held=st.integers(1, 9),
)
def test_however_few_are_held_at_once_nothing_is_missed(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, str], after: dict[str, str], held: int
) -> None:
    directory = tmp_path_factory.mktemp("tables")
    shuffled = random.Random(held).sample(sorted(after.items()), len(after))
    old, new = _table(directory / "old", before.items()), _table(directory / "new", shuffled)
    found = compare_documents(old, new, held_documents=held)
    both = before.keys() & after.keys()
    assert sorted(found.added_names) == sorted(after.keys() - both)
    assert sorted(found.removed_names) == sorted(before.keys() - both)
    assert sorted(found.changed_names) == sorted(key for key in both if before[key] != after[key])
    assert found.unchanged == sum(before[key] == after[key] for key in both)


def test_no_more_names_than_asked_for(tmp_path: Path) -> None:
    old = _table(tmp_path / "old", [])
    new = _table(tmp_path / "new", [(f"{number}", "x") for number in range(1000)])
    found = compare_documents(old, new, examples=3)
    assert (found.added, found.added_names) == (1000, ("0", "1", "2"))


def test_a_right_version_is_verified_and_opened(catalog: Catalog, tmp_path: Path) -> None:
    manifest = publish_index(catalog, tmp_path, {"a": "text"}, version="v1")
    verified = verify(catalog, manifest.ref)
    assert (verified.ref, verified.size_bytes) == (manifest.ref, manifest.size_bytes)
    with pytest.raises(ArtifactNotFoundError):
        verify(catalog, ArtifactRef("indexes", "docs", "v2"))


@pytest.mark.parametrize("name", ["index.faiss", "passages.arrow", "documents.arrow"])
def test_a_wrong_byte_is_found(catalog: Catalog, tmp_path: Path, name: str) -> None:
    manifest = publish_index(catalog, tmp_path, {"a": "text"}, version="v1")
    path = tmp_path / "store" / str(manifest.ref) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactCorruptError, match=name):
        verify(catalog, manifest.ref)


def test_files_that_do_not_belong_together_are_found(catalog: Catalog, tmp_path: Path) -> None:
    publish_index(catalog, tmp_path, {"a": "text"}, version="v1")
    two = publish_index(catalog, tmp_path, {"a": "text", "b": "more"}, version="v2")
    source = tmp_path / "built-docs-v1"
    (source / "passages.arrow").write_bytes((tmp_path / "built-docs-v2" / "passages.arrow").read_bytes())
    mixed = catalog.publish(source, kind="indexes", name="docs", metadata=two.metadata, version="v3")
    with pytest.raises(IndexVersionError, match="its files do not belong together"):
        verify(catalog, mixed.ref)


@with_gates
def test_what_did_not_pass_its_gates_is_promoted_by_force_alone(catalog: Catalog, tmp_path: Path) -> None:
    publish_index(catalog, tmp_path, {"a": "text"}, version="v1", gates=[PASSED])
    publish_index(catalog, tmp_path, {"a": "text", "b": "b"}, version="v2", gates=[PASSED, FAILED])
    assert not promote_index(catalog, "docs", "v1", force=True).forced
    with pytest.raises(GateFailedError, match=r"docs/v2' did not pass .*: canary 1: 'who\?' does not find 'a.txt'"):
        promote_index(catalog, "docs", "v2", reason="fine")
    pointer = promote_index(catalog, "docs", "v2", force=True, reason="known", by="ann", expected_version="v1")
    assert (pointer.forced, pointer.reason, pointer.by) == (True, "known", "ann")


def test_values_for_people() -> None:
    assert short({"name": "minilm", "digest": "sha256:" + "ab" * 32}) == "minilm (abababababab)"
    assert short([PASSED, FAILED]) == "1 of 2 passed"
    assert short({"max_tokens": 200, "overlap_tokens": 30}) == "max_tokens 200, overlap_tokens 30"
    assert short(None) == "none"
    assert short(1.5) == "1.5"
