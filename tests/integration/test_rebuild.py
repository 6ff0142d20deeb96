"""Builds that follow each other on one object store: what they reuse, what they promote, and what stops them."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import (
    ArtifactError,
    DocumentError,
    GateFailedError,
    IndexVersionError,
)
from rag_stack.index.format import Chunking
from rag_stack.index.spec import Canary, Gates
from rag_stack.jobs.build import OvertakenError
from rag_stack.metrics import MemoryRecorder
from tests.rebuilt import NAME, SEGMENT, build, content, embedded, spec_of, write_pages


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    write_pages(folder, range(100))
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "embedded.log"


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Tiers]:
    """Tiers with an object store of that name."""

    def opened(name: str) -> Tiers:
        store = open_store(f"file://{tmp_path}/{name}")
        return Tiers(Catalog(store), NodeCache(tmp_path / f"cache-{name}"), MemoryRecorder())

    return opened


@pytest.fixture
def tiers(place: Callable[[str], Tiers]) -> Tiers:
    return place("root")


def test_an_incremental_build_is_the_full_one(
    tiers: Tiers, place: Callable[[str], Tiers], pages: Path, log: Path
) -> None:
    first = build(tiers, spec_of(pages), log)
    assert (first.documents, first.passages, first.embedded, first.reused) == (100, 300, 300, 0)
    assert (first.promoted, first.full_rebuild_reason) == (True, None)
    # Edits, deletions and additions, at the beginning, in the middle and at the end.
    for number in (0, 50, 99):
        path = pages / f"page{number:04}.txt"
        path.write_text(path.read_text().replace("word3", "changed"))
    for number in (1, 51, 98):
        (pages / f"page{number:04}.txt").unlink()
    write_pages(pages, range(200, 203))
    (pages / "aaa.txt").write_text("the first of all pages")
    (pages / "broken.txt").write_bytes(b"\xff\xfe\x00")
    second = build(tiers, spec_of(pages), log)
    assert (second.documents, second.passages) == (101, 301)
    assert (second.embedded, second.reused) == (19, 282)
    assert [each.document for each in second.skipped] == ["broken.txt"]
    assert second.manifest.parent == first.manifest.version
    full = build(place("fresh"), spec_of(pages), log)
    assert full.embedded == 301
    assert full.manifest.version == second.manifest.version
    assert content(tiers) == content(place("fresh"))


def test_what_is_the_same_is_published_once(tiers: Tiers, pages: Path, log: Path) -> None:
    first = build(tiers, spec_of(pages), log)
    again = build(tiers, spec_of(pages), log)
    assert again.manifest == first.manifest
    assert (again.embedded, again.reused, again.promoted) == (0, 300, True)
    assert embedded(log) == 300
    assert tiers.catalog.versions("indexes", NAME) == [first.manifest.version]


def test_equal_texts_are_embedded_once(tiers: Tiers, pages: Path, log: Path) -> None:
    # Without a title of its own, so that what is embedded is the same too.
    rows = "".join(f'{{"id": "{number}", "text": "all the same"}}\n' for number in range(50))
    (pages / "rows.jsonl").write_text(rows)
    report = build(tiers, spec_of(pages), log)
    assert (report.passages, report.embedded, report.reused) == (350, 301, 49)
    assert embedded(log) == 301


@pytest.mark.parametrize("change", ["chunking", "embedder"])
def test_a_full_rebuild_says_why(tiers: Tiers, pages: Path, log: Path, change: str) -> None:
    build(tiers, spec_of(pages), log)
    if change == "chunking":
        report = build(tiers, spec_of(pages), log, chunking=Chunking(max_tokens=32, overlap_tokens=0))
        assert report.full_rebuild_reason == (
            "the chunking changed from 16 tokens with 0 of overlap to 32 tokens with 0 of overlap"
        )
    else:
        # Another one of the same name: told by its digest.
        report = build(tiers, spec_of(pages), log, dimension=64)
        assert report.full_rebuild_reason is not None
        assert report.full_rebuild_reason.startswith("the embedder changed from words (sha256:")
    assert (report.promoted, report.reused) == (True, 0)


def test_a_gate_that_fails_publishes_and_promotes_nothing(tiers: Tiers, pages: Path, log: Path) -> None:
    first = build(tiers, spec_of(pages), log)
    for number in range(60):
        (pages / f"page{number:04}.txt").unlink()
    with pytest.raises(
        GateFailedError, match=r"published, but not promoted: 2 of its gates failed \(max_shrink of docum"
    ):
        build(tiers, spec_of(pages), log)
    assert tiers.catalog.resolve("indexes", NAME) == first.manifest
    assert len(tiers.catalog.versions("indexes", NAME)) == 2
    forced = build(tiers, spec_of(pages), log, force=True, reason="the old pages are gone for good", by="me")
    assert (forced.promoted, forced.embedded) == (True, 0)
    assert [each.name for each in forced.gates if not each.passed] == [
        "max_shrink of documents",
        "max_shrink of passages",
    ]
    (*_, last) = tiers.catalog.history("indexes", NAME)
    assert (last.version, last.by, last.reason, last.forced) == (
        forced.manifest.version,
        "me",
        "the old pages are gone for good",
        True,
    )


def test_force_is_noted_only_where_it_was_needed(tiers: Tiers, pages: Path, log: Path) -> None:
    build(tiers, spec_of(pages), log, force=True, reason="to be sure")
    (last,) = tiers.catalog.history("indexes", NAME)
    assert not last.forced


def test_canaries_are_asked(tiers: Tiers, pages: Path, log: Path) -> None:
    question = "a7word1 a7word2 a7word3"
    gates = Gates(canaries=(Canary(question=question, expect=("page0007.txt",)),))
    assert build(tiers, spec_of(pages), log, gates=gates).promoted
    gates = Gates(canaries=(Canary(question=question, expect=("page0099.txt",), top_k=1),))
    with pytest.raises(GateFailedError, match=r"canary 1: .* does not find 'page0099.txt'"):
        build(tiers, spec_of(pages), log, gates=gates)


def test_published_but_not_promoted_on_request(tiers: Tiers, pages: Path, log: Path) -> None:
    report = build(tiers, spec_of(pages), log, promote=False)
    assert (report.promoted, report.not_promoted) == (False, "it was asked not to be")
    assert tiers.catalog.promoted("indexes", NAME) is None
    assert tiers.catalog.versions("indexes", NAME) == [report.manifest.version]


def test_of_two_jobs_the_slower_one_is_told_who_won(tiers: Tiers, pages: Path, log: Path) -> None:
    first = build(tiers, spec_of(pages), log)
    (pages / "page0000.txt").write_text("edited")

    def other_job() -> None:
        other = build(tiers, spec_of(pages, attributes={"kind": "page"}), log, by="the other job")
        assert other.promoted

    with pytest.raises(OvertakenError, match=r"is published, but not promoted: .* by the other job") as refused:
        _build_meanwhile(tiers, pages, log, other_job)
    assert repr(first.manifest.version) in refused.value.message
    report = refused.value.report
    assert (report.promoted, report.documents, report.not_promoted) == (False, 100, refused.value.message)
    assert len(tiers.catalog.versions("indexes", NAME)) == 3


def test_of_two_jobs_with_the_same_result_both_succeed(tiers: Tiers, pages: Path, log: Path) -> None:
    build(tiers, spec_of(pages), log)
    (pages / "page0000.txt").write_text("edited")
    build_meanwhile = _build_meanwhile(tiers, pages, log, lambda: build(tiers, spec_of(pages), log))
    assert build_meanwhile


def _build_meanwhile(tiers: Tiers, pages: Path, log: Path, other: Callable[[], object]) -> bool:
    """A build during which another one does all of its own: when the first one publishes."""
    publish = tiers.catalog.publish

    class Meanwhile(Catalog):
        def publish(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
            other()
            return publish(*arguments, **options)  # type: ignore[arg-type]

    watched = Tiers(Meanwhile(tiers.catalog.store), tiers.cache, MemoryRecorder())
    return build(watched, spec_of(pages), log).promoted


def test_an_empty_source_is_refused(tiers: Tiers, tmp_path: Path, log: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(IndexVersionError, match=r"no documents for the index 'pages': the source has none"):
        build(tiers, spec_of(folder), log)
    (folder / "blank.txt").write_text("   ")
    with pytest.raises(IndexVersionError, match=r"1 were left out \(blank.txt: is empty\)"):
        build(tiers, spec_of(folder), log)
    assert tiers.catalog.versions("indexes", NAME) == []


def test_on_error_fail_stops_at_the_first(tiers: Tiers, pages: Path, log: Path) -> None:
    (pages / "page0050.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DocumentError, match=r"page0050\.txt"):
        build(tiers, spec_of(pages), log, on_error="fail")
    assert tiers.catalog.versions("indexes", NAME) == []


def test_a_store_that_fails_midway_promotes_nothing_and_loses_nothing(
    place: Callable[[str], Tiers], pages: Path, log: Path, tmp_path: Path
) -> None:
    tiers = place("root")
    # The version's files cannot be written: a folder of that name that nobody may enter would not stop root.
    indexes = tmp_path / "root" / "indexes"
    indexes.parent.mkdir(parents=True)
    indexes.write_text("in the way")
    with pytest.raises(ArtifactError, match="indexes"):
        build(tiers, spec_of(pages), log)
    indexes.unlink()
    report = build(tiers, spec_of(pages), log)
    assert (report.promoted, report.embedded, embedded(log)) == (True, 0, 300)


def test_a_build_that_fails_keeps_what_it_embedded(tiers: Tiers, pages: Path, log: Path) -> None:
    def break_off() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build_meanwhile(tiers, pages, log, break_off)
    assert build(tiers, spec_of(pages), log).embedded == 0


@pytest.mark.long
def test_many_builds_leave_few_segments(tiers: Tiers, pages: Path, log: Path, tmp_path: Path) -> None:
    for number in range(40):
        (pages / "page0000.txt").write_text(f"edition {number}")
        build(tiers, spec_of(pages), log)
    segments = list((tmp_path / "root" / "embeddings" / NAME).glob("*/*.arrow"))
    assert len(segments) <= 35
    # A page of three passages became one of one, and that was embedded for each edition.
    assert embedded(log) == 300 - 3 + 40


def test_no_room_for_temporary_files_is_a_clear_error(
    tiers: Tiers, pages: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setenv("TMPDIR", str(full))
    monkeypatch.setattr("tempfile.tempdir", str(full))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises((IndexVersionError, ArtifactError), match=os.strerror(errno.EFBIG)):
            build(tiers, spec_of(pages), log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tiers.catalog.versions("indexes", NAME) == []
    assert embedded(log) > SEGMENT
