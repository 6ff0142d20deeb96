"""Groups of files for tasks, and how much of a source is read."""

from pathlib import Path

from rag_stack.index.documents import list_source
from rag_stack.index.source import SourceFile, open_source
from rag_stack.jobs.reading import CountedReading, SourceReader, grouped, weight
from tests.rebuilt import spec_of, write_pages


def test_groups_keep_the_order_and_their_weight() -> None:
    files = [
        SourceFile(path=f"{number}", size_bytes=size) for number, size in enumerate([10, 10, 10_000, 10, 90_000, 5])
    ]
    groups = list(grouped(files, target_weight=20_000))
    assert [file for group in groups for file in group] == files
    assert all(len(group) == 1 or sum(map(weight, group)) <= 20_000 for group in groups)
    assert [len(group) for group in groups] == [2, 2, 1, 1]
    assert list(grouped([], target_weight=1)) == []


def test_the_share_grows_to_one(tmp_path: Path) -> None:
    write_pages(tmp_path, range(5))
    spec = spec_of(tmp_path)
    tree = open_source(spec.source)
    reading = CountedReading(SourceReader(spec, tree), list_source(spec, tree).files)
    shares = [reading.share() for _ in reading]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert reading.share() == 1.0
