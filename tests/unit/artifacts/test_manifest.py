"""A manifest is what it was written as, or it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rag_stack.artifacts.manifest import ArtifactRef, FileEntry, Manifest, describe_files
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactOutdatedError

DIGEST = "0" * 64
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda part: not part.startswith(".")
)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(lambda path: path != "manifest.json")
CHUNK_BYTES = 2**24


def entry(path: str, digests: list[str], last_bytes: int) -> FileEntry:
    return FileEntry(path, (len(digests) - 1) * CHUNK_BYTES + last_bytes if digests else 0, tuple(digests))


ENTRIES = st.builds(
    entry,
    path=PATHS,
    digests=st.lists(st.from_regex(r"[0-9a-f]{64}", fullmatch=True), max_size=4),
    last_bytes=st.integers(1, CHUNK_BYTES),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MANIFESTS = st.builds(
    Manifest,
    kind=st.sampled_from(["models", "indexes"]),
    name=NAMES,
    version=NAMES.filter(lambda version: version != "PROMOTED"),
    files=st.lists(ENTRIES, min_size=1, max_size=4, unique_by=lambda entry: entry.path).map(tuple),
    metadata=st.dictionaries(st.text(), JSON, max_size=4),
    parent=st.none() | NAMES,
    chunk_bytes=st.just(CHUNK_BYTES),
)


def document(**changes: Any) -> bytes:
    body = {
        "schema_version": 2,
        "kind": "models",
        "name": "m",
        "version": "v1",
        "files": [{"path": "a.txt", "size_bytes": 1, "chunks": [DIGEST]}],
        "metadata": {},
        "parent": None,
        "chunk_bytes": CHUNK_BYTES,
    }
    return json.dumps({**body, **changes}).encode()


@given(MANIFESTS)
def test_round_trip(manifest: Manifest) -> None:
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.digest == manifest.digest
    assert again.size_bytes == sum(entry.size_bytes for entry in manifest.files)
    chunks = again.chunks()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for file in manifest.files:
        own = [chunk for chunk in chunks if chunk.path == file.path]
        assert tuple(chunk.digest for chunk in own) == file.chunks
        assert [chunk.offset for chunk in own] == [number * CHUNK_BYTES for number in range(len(own))]
        assert sum(chunk.size_bytes for chunk in own) == file.size_bytes


@given(MANIFESTS, st.data())
def test_a_flipped_byte_is_refused_or_changes_the_digest(manifest: Manifest, data: st.DataObject) -> None:
    raw = bytearray(manifest.to_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    try:
        found = Manifest.from_bytes(bytes(raw))
    except ArtifactCorruptError:
        return
    # Two spellings of one value, such as 1.0e5 and 1.0E5, are the same manifest.
    assume(found != manifest)
    assert found.digest != manifest.digest


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "",
        ".",
        "./a",
        "a//b",
        "a/",
        "a/..",
        "a\0b",
        "manifest.json",
        "manifest.json/a",
        ".unsynced",
        "a/.b",
    ],
)
def test_a_path_that_leaves_the_artifact_is_refused(path: str) -> None:
    with pytest.raises(ArtifactCorruptError, match="manifest is not valid"):
        Manifest.from_bytes(document(files=[{"path": path, "size_bytes": 1, "chunks": [DIGEST]}]))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"schema_version": 2}',
        b'{"schema_version": true}',
        b'{"schema_version": 0}',
        document(files=[]),
        document(files=[{"path": "a", "size_bytes": 1, "chunks": [DIGEST]}] * 2),
        document(files=[{"path": "a", "size_bytes": -1, "chunks": [DIGEST]}]),
        document(files=[{"path": "a", "size_bytes": True, "chunks": [DIGEST]}]),
        document(files=[{"path": "a", "size_bytes": 1, "chunks": ["md5:0"]}]),
        document(files=[{"path": "a", "size_bytes": 1, "chunks": [DIGEST], "mode": 7}]),
        document(files=[{"path": "a", "size_bytes": 0, "chunks": [DIGEST]}]),
        document(files=[{"path": "a", "size_bytes": 1, "chunks": []}]),
        document(files=[{"path": "a", "size_bytes": CHUNK_BYTES + 1, "chunks": [DIGEST]}]),
        document(chunk_bytes=0),
        document(chunk_bytes=2**40),
        document(kind="engines"),
        document(name="../up"),
        document(version="PROMOTED"),
        document(version="v1\n"),
        document(metadata=[]),
        document(signature="x"),
    ],
)
def test_what_is_not_a_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(ArtifactCorruptError):
        Manifest.from_bytes(raw)


def test_a_later_schema_is_refused_by_its_number() -> None:
    with pytest.raises(ArtifactCorruptError, match=r"schema version 3, this release reads 2; upgrade"):
        Manifest.from_bytes(document(schema_version=3, renamed_fields=True))


def test_an_earlier_schema_says_what_to_do() -> None:
    with pytest.raises(ArtifactOutdatedError, match=r"schema version 1, .*older rag_stack; publish and promote it aga"):
        Manifest.from_bytes(document(schema_version=1))


@pytest.mark.parametrize("metadata", [{"score": float("nan")}, {"path": Path("x")}, {"text": "\ud800"}])
def test_metadata_must_be_json(metadata: dict[str, Any]) -> None:
    manifest = Manifest(kind="models", name="m", version="v", files=(FileEntry("a", 1, (DIGEST,)),), metadata=metadata)
    with pytest.raises(ArtifactError, match="must be JSON"):
        manifest.to_bytes()


@pytest.mark.parametrize(
    ("kind", "name", "version"),
    [("model", "m", "v"), ("models", "", "v"), ("models", "a/b", "v"), ("models", "m", ".."), ("models", "m\n", "v")],
)
def test_an_address_is_checked(kind: Any, name: str, version: str) -> None:
    with pytest.raises(ArtifactError):
        ArtifactRef(kind, name, version)


def test_an_address_reads_as_a_path() -> None:
    assert str(ArtifactRef("indexes", "docs", "2024-01")) == "indexes/docs/2024-01"


def test_files_are_described_through_links_and_without_dotfiles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_bytes(b"abc")
    source = tmp_path / "source"
    source.mkdir()
    (source / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    (source / "folder").symlink_to(tmp_path / "real")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("x")
    files = describe_files(source)
    assert [entry.path for entry in files] == ["folder/a.txt", "link.txt"]
    # BLAKE3 of "abc", from its published test vectors' tool b3sum.
    assert {entry.chunks for entry in files} == {("6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",)}


def test_files_that_cannot_be_published_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="broken"):
        describe_files(tmp_path)
    broken.unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="link to a directory that holds it"):
        describe_files(tmp_path)
    (tmp_path / "loop").unlink()
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="name of the manifest itself"):
        describe_files(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "caf\udce9").write_text("x")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        describe_files(tmp_path)
