"""A node holds an artifact whole and verified, or not at all, and fetches it once."""

import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.manifest import FileEntry, Manifest, describe_files
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.errors import ArtifactCorruptError, ArtifactError

Tree = Callable[..., Path]
FILES = {"a.txt": b"abc", "b.bin": b"0123456789" * 1000, "sub/c ü.bin": b""}


@pytest.fixture
def source(tree: Tree) -> Path:
    return tree(FILES)


@pytest.fixture
def manifest(source: Path) -> Manifest:
    return Manifest(kind="models", name="m", version="v1", files=describe_files(source), metadata={})


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(tmp_path / "cache")


class Origin:
    """Copies from a directory and remembers what was asked for, in a file that all processes share."""

    def __init__(self, source: Path, log: Path) -> None:
        self.source = source
        self.log = log

    def __call__(self, entry: FileEntry, path: Path) -> None:
        with self.log.open("a") as log:
            log.write(f"{entry.path}\n")
        shutil.copyfile(self.source / entry.path, path)

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def origin(source: Path, tmp_path: Path) -> Origin:
    return Origin(source, tmp_path / "log")


def test_an_artifact_is_whole_and_read_only(cache: NodeCache, manifest: Manifest, origin: Origin) -> None:
    assert cache.find(manifest) is None
    directory = cache.insert(manifest, origin)
    assert cache.find(manifest) == directory
    assert {path: (directory / path).read_bytes() for path in FILES} == FILES
    assert all((directory / path).stat().st_mode & 0o777 == 0o444 for path in FILES)
    assert origin.asked() == sorted(FILES)


def test_what_is_cached_is_not_fetched_again(cache: NodeCache, manifest: Manifest, origin: Origin) -> None:
    assert cache.insert(manifest, origin) == cache.insert(manifest, origin)
    assert origin.asked() == sorted(FILES)


def test_nothing_is_left_beside_a_finished_fetch(
    cache: NodeCache, manifest: Manifest, origin: Origin, tmp_path: Path
) -> None:
    cache.insert(manifest, origin)
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


def test_other_content_is_another_artifact(cache: NodeCache, manifest: Manifest, origin: Origin, source: Path) -> None:
    first = cache.insert(manifest, origin)
    (source / "a.txt").write_bytes(b"new")
    other = Manifest(kind="models", name="m", version="v2", files=describe_files(source), metadata={})
    assert cache.find(other) is None
    assert cache.insert(other, origin) != first
    assert cache.find(manifest) == first


@pytest.mark.parametrize("damage", [b"0123", b"x" + FILES["b.bin"][1:], FILES["b.bin"] + b"x", b""])
def test_wrong_bytes_never_become_visible(
    cache: NodeCache, manifest: Manifest, origin: Origin, source: Path, damage: bytes
) -> None:
    (source / "b.bin").write_bytes(damage)
    expected = next(entry.digest for entry in manifest.files if entry.path == "b.bin")
    with pytest.raises(ArtifactCorruptError) as failure:
        cache.insert(manifest, origin)
    for part in ("'b.bin'", "models/m/v1", expected, "publish it again"):
        assert part in failure.value.message
    assert cache.find(manifest) is None

    (source / "b.bin").write_bytes(FILES["b.bin"])
    assert (cache.insert(manifest, origin) / "b.bin").read_bytes() == FILES["b.bin"]
    assert origin.asked().count("a.txt") == 1


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_cached_file_that_changed_size_is_named(
    cache: NodeCache, manifest: Manifest, origin: Origin, damage: str
) -> None:
    directory = cache.insert(manifest, origin)
    (directory / "b.bin").unlink()
    if damage == "truncated":
        (directory / "b.bin").write_bytes(b"0123")
    with pytest.raises(ArtifactCorruptError) as failure:
        cache.find(manifest)
    assert str(directory / "b.bin") in failure.value.message
    assert f"delete the folder {str(directory)!r}" in failure.value.message

    shutil.rmtree(directory)
    assert cache.find(manifest) is None
    assert cache.insert(manifest, origin) == directory


def test_a_killed_fetch_shows_nothing_and_is_gone_on_with(
    cache: NodeCache, manifest: Manifest, origin: Origin, processes: ForkContext
) -> None:
    halfway, never = processes.Event(), processes.Event()

    def stall(entry: FileEntry, path: Path) -> None:
        if entry.path == "b.bin":
            path.write_bytes(FILES["b.bin"][:1000])
            halfway.set()
            never.wait()
        origin(entry, path)

    fetcher = processes.Process(target=lambda: cache.insert(manifest, stall))
    fetcher.start()
    assert halfway.wait(30)
    assert fetcher.pid is not None
    os.kill(fetcher.pid, signal.SIGKILL)
    fetcher.join(30)
    assert cache.find(manifest) is None
    assert origin.asked() == ["a.txt"]

    directory = cache.insert(manifest, origin)
    assert origin.asked() == ["a.txt", "b.bin", "sub/c ü.bin"]
    assert {path: (directory / path).read_bytes() for path in FILES} == FILES
    assert (directory / "a.txt").stat().st_mode & 0o777 == 0o444


def test_of_two_processes_one_fetches(
    cache: NodeCache, manifest: Manifest, origin: Origin, processes: ForkContext
) -> None:
    fetching, second_is_here, paths = processes.Event(), processes.Event(), processes.Queue()

    def slow(entry: FileEntry, path: Path) -> None:
        fetching.set()
        assert second_is_here.wait(30)
        origin(entry, path)

    def first() -> None:
        paths.put(cache.insert(manifest, slow))

    def second() -> None:
        assert fetching.wait(30)
        assert cache.find(manifest) is None
        second_is_here.set()
        paths.put(cache.insert(manifest, origin))

    both = [processes.Process(target=first), processes.Process(target=second)]
    for process in both:
        process.start()
    found = {paths.get(timeout=60) for _ in both}
    for process in both:
        process.join(30)
    assert found == {cache.find(manifest)}
    assert origin.asked() == sorted(FILES)


def test_a_failing_fetch_is_passed_on_and_tried_again(cache: NodeCache, manifest: Manifest, origin: Origin) -> None:
    def fail(entry: FileEntry, path: Path) -> None:
        raise ArtifactError("the network is away")

    with pytest.raises(ArtifactError, match="the network is away"):
        cache.insert(manifest, fail)
    assert cache.find(manifest) is None
    assert cache.insert(manifest, origin) == cache.find(manifest)


def test_a_cache_that_cannot_hold_it_says_so_before_fetching(cache: NodeCache, origin: Origin, tmp_path: Path) -> None:
    size = shutil.disk_usage(tmp_path).total + 1
    entry = FileEntry("huge", size, "sha256:" + "0" * 64)
    huge = Manifest(kind="models", name="m", version="v1", files=(entry,), metadata={})
    with pytest.raises(ArtifactError, match=rf"needs {size} more bytes .* free some space"):
        cache.insert(huge, origin)
    assert origin.asked() == []


def test_a_cache_that_cannot_be_written_says_so(manifest: Manifest, origin: Origin, read_only_directory: Path) -> None:
    cache = NodeCache(read_only_directory / "cache")
    assert cache.find(manifest) is None
    with pytest.raises(ArtifactError, match="Permission denied; give this user access"):
        cache.insert(manifest, origin)
