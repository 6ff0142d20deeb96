"""A folder and an S3 bucket as sources: the same files by the same patterns, and what is said when one fails."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.s3_server import S3Server
from rag_stack.errors import ArtifactError, DocumentError, IndexVersionError
from rag_stack.index.documents import Document, iter_documents, list_source, read_documents, read_file
from rag_stack.index.format import Skipped
from rag_stack.index.source import Choice, S3Tree, SourceFile, open_source
from rag_stack.index.spec import IndexSpec, Source
from tests.s3 import Fault, FaultProxy, fault_proxy, use

_FILES = {
    "a.txt": b"alpha",
    "sub/b.md": b"# beta",
    "sub/deep/c.html": b"<h1>gamma</h1>",
    "sub/deep/sp ace #é?%.txt": b"delta",
    "z.bin": b"\0",
}


def _fill(folder: Path) -> None:
    for path, data in _FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A place with the files, as this machine's folder and as a source names it."""
    if request.param == "folder":
        folder = tmp_path / "docs"
        _fill(folder)
        return folder, str(folder)
    bucket: Path = request.getfixturevalue("bucket")
    _fill(bucket / "some" / "docs")
    return bucket / "some" / "docs", f"s3://{bucket.name}/some/docs/"


def _spec(folder: str | Path, *, source: dict[str, Any] | None = None, **settings: Any) -> IndexSpec:
    source = {"folder": folder, **(source or {})}
    return IndexSpec.model_validate({"name": "docs", "embedder": {"name": "words"}, "source": source, **settings})


def test_files_are_listed_whole_and_sorted(place: tuple[Path, str]) -> None:
    tree = open_source(Source(folder=place[1]))
    files = tree.files()
    assert [file.path for file in files] == ["a.txt", "sub/b.md", "sub/deep/c.html", "sub/deep/sp ace #é?%.txt"]
    assert [file.size_bytes for file in files] == [len(_FILES[file.path]) for file in files]
    assert [tree.read(file.path) for file in files] == [_FILES[file.path] for file in files]
    chosen = Source(folder=place[1], include=("**/*.txt", "sub/**"), exclude=("sub/*.md", "**/*.html"))
    assert [file.path for file in open_source(chosen).files()] == ["a.txt", "sub/deep/sp ace #é?%.txt"]


def test_a_tree_goes_to_other_processes(place: tuple[Path, str]) -> None:
    tree = open_source(Source(folder=place[1]))
    assert tree.read("a.txt") == b"alpha"
    other = pickle.loads(pickle.dumps(tree))
    assert other.files() == tree.files()
    assert other.read("sub/b.md") == b"# beta"


def test_a_file_can_be_read_in_pieces_from_any_place(place: tuple[Path, str]) -> None:
    with open_source(Source(folder=place[1])).open("a.txt") as file:
        assert (file.read(2), file.tell(), file.read()) == (b"al", 2, b"pha")
        assert (file.seek(-3, os.SEEK_END), file.read(1)) == (2, b"p")


def test_ids_are_the_same_wherever_the_files_lie(place: tuple[Path, str], tmp_path: Path) -> None:
    _fill(tmp_path / "copy")
    here, there = read_documents(_spec(place[1])), read_documents(_spec(tmp_path / "copy"))
    assert here == there
    assert len(here.documents) == 4


@pytest.mark.parametrize("path", ["gone.txt", "gone.jsonl", "gone.parquet"])
def test_a_file_that_is_gone_before_it_is_read_is_named(place: tuple[Path, str], path: str) -> None:
    spec = _spec(place[1])
    tree = open_source(spec.source)
    with pytest.raises(DocumentError, match="No such file"):
        tree.read(path)
    listed = SourceFile(path, 3)
    assert list(read_file(spec, tree, listed)) == [Skipped(document=path, reason="No such file or directory")]


def test_a_place_that_is_not_there_is_an_error(place: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(IndexVersionError, match="does not exist"):
        open_source(Source(folder=place[1].rstrip("/") + "/nowhere")).files()


def test_a_bucket_that_is_not_there_is_an_error(bucket: Path) -> None:
    with pytest.raises(IndexVersionError, match=r"'s3://no-such-bucket-here/x' does not exist"):
        open_source(Source(folder="s3://no-such-bucket-here/x")).files()


def test_a_whole_bucket_is_a_source(bucket: Path) -> None:
    _fill(bucket)
    tree = open_source(Source(folder=f"s3://{bucket.name}"))
    assert [file.path for file in tree.files()][:2] == ["a.txt", "sub/b.md"]
    assert tree.read("a.txt") == b"alpha"


def test_links_to_files_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    _fill(folder)
    (folder / "link.txt").symlink_to(folder / "a.txt")
    (folder / "sub" / "again").symlink_to(folder)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "broken.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    read = read_documents(_spec(folder, source={"include": ["**/*.txt"], "exclude": ["sub/**"]}))
    assert [document.attributes["path"] for document in read.documents] == ["a.txt", "link.txt"]
    assert {each.document: each.reason for each in read.skipped} == {
        "broken.txt": "No such file or directory",
        "self.txt": "Too many levels of symbolic links",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "a.txt").chmod(0)
    (tmp_path / "sub").chmod(0)
    try:
        spec = _spec(tmp_path)
        tree = open_source(spec.source)
        found = [each for file in tree.files() for each in read_file(spec, tree, file)]
    finally:
        (tmp_path / "sub").chmod(0o700)
    assert [(each.document, each.reason) for each in found if isinstance(each, Skipped)] == [
        ("a.txt", "Permission denied"),
        ("sub", "Permission denied"),
    ]


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    (skipped,) = read_documents(_spec(tmp_path)).skipped
    assert skipped == Skipped(document="caf\ufffd.txt", reason="has a name that is not UTF-8; rename it")


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server) as proxy:
        use(monkeypatch, proxy.environment)
        yield proxy


def _impatient(url: str) -> S3Tree:
    return S3Tree(url, Choice.of(Source(folder=url)), stall_timeout_s=2, attempts=1)


def test_a_listing_that_fails_is_an_error_and_not_an_empty_source(bucket: Path, proxy: FaultProxy) -> None:
    _fill(bucket)
    tree = _impatient(f"s3://{bucket.name}")
    proxy.inject(Fault("error"))
    with pytest.raises(ArtifactError, match=rf"cannot list 's3://{bucket.name}'.*check AWS_ENDPOINT_URL"):
        tree.files()
    proxy.inject(Fault("error", status=403, code="AccessDenied"))
    with pytest.raises(ArtifactError, match="check AWS_ACCESS_KEY_ID"):
        tree.files()


@pytest.mark.parametrize("fault", [Fault("error"), Fault("cut", after_bytes=2), Fault("reset", after_bytes=2)])
def test_an_object_that_the_server_does_not_give_is_an_error(bucket: Path, proxy: FaultProxy, fault: Fault) -> None:
    _fill(bucket)
    (bucket / "rows.jsonl").write_text('{"id": "1", "text": "x"}\n')
    spec = _spec(f"s3://{bucket.name}")
    tree = _impatient(f"s3://{bucket.name}")
    files = {file.path: file for file in tree.files()}
    for path in ("a.txt", "rows.jsonl"):
        proxy.inject(Fault(fault.kind, after_bytes=fault.after_bytes, path=path))
        with pytest.raises(ArtifactError, match=rf"cannot read 's3://{bucket.name}/{path}'"):
            list(read_file(spec, tree, files[path]))


def test_a_hiccup_of_the_server_is_not_seen(bucket: Path, proxy: FaultProxy) -> None:
    _fill(bucket)
    proxy.inject(Fault("error", times=1))
    assert len(read_documents(_spec(f"s3://{bucket.name}")).documents) == 4
    assert proxy.fired == 1


def test_a_metadata_file_describes_files_on_s3(bucket: Path) -> None:
    _fill(bucket)
    (bucket / "meta.jsonl").write_text('{"path": "a.txt", "title": "First"}\n{"path": "gone.txt"}\n')
    spec = _spec(f"s3://{bucket.name}", source={"metadata": "meta.jsonl"})
    tree = open_source(spec.source)
    listing = list_source(spec, tree)
    assert [file.path for file in listing.files if file.described] == ["a.txt"]
    (document,) = read_file(spec, tree, listing.files[0])
    assert isinstance(document, Document)
    assert document.title == "First"
    assert [each.reason for each in listing.skipped] == ["names the file 'gone.txt', which is not in the source"]


def test_documents_come_one_by_one(tmp_path: Path) -> None:
    _fill(tmp_path)
    documents = iter_documents(_spec(tmp_path))
    assert next(documents).text == "alpha"
    (tmp_path / "sub" / "b.md").write_bytes(b"changed since")
    assert next(documents).text == "changed since", "it was not read before it was asked for"
