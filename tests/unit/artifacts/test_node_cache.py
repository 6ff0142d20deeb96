"""A node holds an artifact whole and verified, or not at all, and fetches it once."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.chunk import Chunk
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.artifacts.node_cache import NodeCache, read_manifest
from rag_stack.artifacts.partial import Partial
from rag_stack.errors import ArtifactCorruptError, ArtifactError
from tests.unit.artifacts.conftest import Source

FILES = {"a.txt": b"abc", "b.bin": b"0123456789" * 1050, "sub/c ü.bin": b""}


@pytest.fixture
def source(sources: Callable[..., Source]) -> Source:
    return sources("v1", FILES)


def forget_sync(cache: NodeCache, directory: Path, *, boot: str = "another boot") -> None:
    """As if the machine had gone down before the artifact was on the disk."""
    cache.wait_synced()
    (directory / ".unsynced").write_text(boot)


def damage(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_an_artifact_is_whole_and_read_only(cache: NodeCache, source: Source) -> None:
    assert cache.find(source.manifest) is None
    directory = cache.insert(source.manifest, source.fill)
    assert cache.find(source.manifest) == directory
    assert {path: (directory / path).read_bytes() for path in FILES} == FILES
    assert all((directory / path).stat().st_mode & 0o777 == 0o444 for path in FILES)
    assert source.chunks_read() == source.all_chunks()
    assert read_manifest(directory) == source.manifest
    cache.verify(source.manifest)
    cache.wait_synced()
    assert not (directory / ".unsynced").exists()


def test_what_is_cached_is_not_fetched_again(cache: NodeCache, source: Source) -> None:
    assert cache.insert(source.manifest, source.fill) == cache.insert(source.manifest, source.fill)
    assert source.chunks_read() == source.all_chunks()


def test_nothing_is_left_beside_a_finished_fetch(cache: NodeCache, source: Source) -> None:
    cache.insert(source.manifest, source.fill)
    assert list((cache.directory / "partial").iterdir()) == []


def test_other_content_is_another_artifact(cache: NodeCache, source: Source, sources: Callable[..., Source]) -> None:
    first, other = cache.insert(source.manifest, source.fill), sources("v2", {**FILES, "a.txt": b"new"})
    assert cache.find(other.manifest) is None
    assert cache.insert(other.manifest, other.fill) != first
    assert cache.find(source.manifest) == first


@pytest.mark.parametrize("content", [b"0123", b"x" + FILES["b.bin"][1:], FILES["b.bin"][:-1] + b"x", b""])
def test_wrong_bytes_never_become_visible(cache: NodeCache, source: Source, content: bytes) -> None:
    (source.directory / "b.bin").write_bytes(content)
    with pytest.raises(ArtifactCorruptError) as failure:
        cache.insert(source.manifest, source.fill)
    digests = source.manifest.files[1].chunks
    for part in ("'b.bin'", "models/m/v1", "publish it again"):
        assert part in failure.value.message
    assert any(digest in failure.value.message for digest in digests)
    assert cache.find(source.manifest) is None

    wrong = source.chunks_read()[-1]
    (source.directory / "b.bin").write_bytes(FILES["b.bin"])
    assert (cache.insert(source.manifest, source.fill) / "b.bin").read_bytes() == FILES["b.bin"]
    assert source.chunks_read() == sorted([*source.all_chunks(), wrong])


@pytest.mark.parametrize("change", ["truncated", "missing"])
def test_a_cached_file_that_changed_size_is_named(cache: NodeCache, source: Source, change: str) -> None:
    directory = cache.insert(source.manifest, source.fill)
    (directory / "b.bin").unlink()
    if change == "truncated":
        (directory / "b.bin").write_bytes(b"0123")
    with pytest.raises(ArtifactCorruptError) as failure:
        cache.find(source.manifest)
    assert "'b.bin'" in failure.value.message
    assert f"delete the folder {str(directory)!r}" in failure.value.message

    shutil.rmtree(directory)
    assert cache.find(source.manifest) is None
    assert cache.insert(source.manifest, source.fill) == directory


def test_verify_names_all_that_is_wrong(cache: NodeCache, source: Source) -> None:
    directory = cache.insert(source.manifest, source.fill)
    cache.wait_synced()
    damage(directory / "b.bin", FILES["b.bin"][:5000] + b"x" + FILES["b.bin"][5001:])
    damage(directory / "sub/c ü.bin", b"no longer empty")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(
        ArtifactCorruptError, match=r"'b.bin' is not .*'sub/c ü.bin' is not .*'pytorch_model.bin' does"
    ) as e:
        cache.verify(source.manifest)
    assert "a.txt" not in e.value.message


@pytest.mark.parametrize("written", [0, 1, 7])
def test_a_killed_fetch_is_gone_on_with_at_its_next_chunk(
    cache: NodeCache, source: Source, processes: ForkContext, written: int
) -> None:
    halfway, never = processes.Event(), processes.Event()

    def stall(chunk: Chunk) -> None:
        if chunk.index == written:
            halfway.set()
            never.wait()

    def fetch() -> None:
        source.before = stall
        cache.insert(source.manifest, source.fill)

    fetcher = processes.Process(target=fetch)
    fetcher.start()
    assert halfway.wait(30)
    assert fetcher.pid is not None
    os.kill(fetcher.pid, signal.SIGKILL)
    fetcher.join(30)
    assert cache.find(source.manifest) is None
    assert source.chunks_read() == source.all_chunks()[:written]

    directory = cache.insert(source.manifest, source.fill)
    # Each chunk once, over both of them.
    assert source.chunks_read() == source.all_chunks()
    assert source.is_whole(directory)
    assert (directory / "a.txt").stat().st_mode & 0o777 == 0o444


def test_a_fetch_killed_while_it_made_all_read_only_is_gone_on_with(source: Source, ordinary_directory: Path) -> None:
    cache = NodeCache(ordinary_directory / "cache")
    work = cache.directory / "partial" / source.manifest.hex
    work.mkdir(parents=True)
    (work / "a.txt").write_bytes(FILES["a.txt"])
    (work / "a.txt").chmod(0o444)
    fetched: list[int] = []

    def fill(partial: Partial) -> None:
        for chunk in partial.missing():
            partial.write(chunk, FILES[chunk.path][chunk.offset :][: chunk.size_bytes])
            fetched.append(chunk.index)

    assert source.is_whole(cache.insert(source.manifest, fill))
    assert fetched == source.all_chunks()[1:]


def test_of_many_processes_at_once_one_fetches(cache: NodeCache, source: Source, processes: ForkContext) -> None:
    start, paths = processes.Barrier(8), processes.Queue()

    def load() -> None:
        start.wait(30)
        paths.put(cache.find(source.manifest) or cache.insert(source.manifest, source.fill))

    loaders = [processes.Process(target=load) for _ in range(8)]
    for loader in loaders:
        loader.start()
    found = {paths.get(timeout=60) for _ in loaders}
    for loader in loaders:
        loader.join(30)
    assert [loader.exitcode for loader in loaders] == [0] * 8
    assert found == {cache.find(source.manifest)}
    assert source.chunks_read() == source.all_chunks()


def test_when_the_one_that_fetches_is_killed_a_waiting_one_goes_on(
    cache: NodeCache, source: Source, processes: ForkContext
) -> None:
    halfway, never, paths = processes.Event(), processes.Event(), processes.Queue()

    def stall(chunk: Chunk) -> None:
        if chunk.index == 5:
            halfway.set()
            never.wait()

    def first() -> None:
        source.before = stall
        cache.insert(source.manifest, source.fill)

    def second() -> None:
        paths.put(cache.insert(source.manifest, source.fill))

    fetcher, waiting = processes.Process(target=first), processes.Process(target=second)
    fetcher.start()
    assert halfway.wait(30)
    waiting.start()
    assert fetcher.pid is not None
    os.kill(fetcher.pid, signal.SIGKILL)
    assert source.is_whole(paths.get(timeout=60))
    for process in (fetcher, waiting):
        process.join(30)
    assert source.chunks_read() == source.all_chunks()


def test_a_failing_fetch_is_passed_on_and_tried_again(cache: NodeCache, source: Source) -> None:
    def fail(partial: Partial) -> None:
        raise ArtifactError("the network is away")

    with pytest.raises(ArtifactError, match="the network is away"):
        cache.insert(source.manifest, fail)
    assert cache.find(source.manifest) is None
    assert cache.insert(source.manifest, source.fill) == cache.find(source.manifest)


def test_a_cache_that_is_deleted_under_the_process_is_made_again(cache: NodeCache, source: Source) -> None:
    cache.insert(source.manifest, source.fill)
    cache.wait_synced()
    shutil.rmtree(cache.directory)
    assert source.is_whole(cache.insert(source.manifest, source.fill))
    source.before = lambda chunk: shutil.rmtree(cache.directory, ignore_errors=True)
    shutil.rmtree(cache.directory)
    with pytest.raises(ArtifactError, match="No such file or directory; check the path and try again"):
        cache.insert(source.manifest, source.fill)
    source.before = lambda chunk: None
    assert source.is_whole(cache.insert(source.manifest, source.fill))


def test_a_cache_that_cannot_be_written_says_so(source: Source, read_only_directory: Path) -> None:
    cache = NodeCache(read_only_directory / "cache")
    assert cache.find(source.manifest) is None
    assert cache.eviction.artifacts() == []
    with pytest.raises(ArtifactError, match="Permission denied; give this user access"):
        cache.insert(source.manifest, source.fill)


def test_a_disk_that_is_full_says_what_to_do(cache: NodeCache, source: Source, processes: ForkContext) -> None:
    messages = processes.Queue()

    def fill_up(partial: Partial) -> None:
        # The kernel's own refusal: a disk that is full here would be full for everybody.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        source.fill(partial)

    def fetch() -> None:
        try:
            cache.insert(source.manifest, fill_up)
        except ArtifactError as exc:
            messages.put(exc.message)

    fetcher = processes.Process(target=fetch)
    fetcher.start()
    assert "File too large; raise the limit on file sizes or choose another place" in messages.get(timeout=30)
    fetcher.join(30)
    assert cache.find(source.manifest) is None
    assert source.is_whole(cache.insert(source.manifest, source.fill))


def test_what_was_not_on_the_disk_when_the_machine_went_down_is_verified(cache: NodeCache, source: Source) -> None:
    directory = cache.insert(source.manifest, source.fill)
    forget_sync(cache, directory)
    assert cache.find(source.manifest) is None
    assert cache.insert(source.manifest, source.fill) == directory
    assert source.chunks_read() == source.all_chunks()
    assert not (directory / ".unsynced").exists()
    assert cache.find(source.manifest) == directory


@pytest.mark.parametrize("lost", ["bytes", "end", "file"])
def test_what_the_machine_lost_when_it_went_down_is_fetched_again(cache: NodeCache, source: Source, lost: str) -> None:
    directory = cache.insert(source.manifest, source.fill)
    forget_sync(cache, directory, boot="")
    content = {"bytes": FILES["b.bin"][:10_000] + bytes(500), "end": FILES["b.bin"][:10_000]}.get(lost, b"")
    damage(directory / "b.bin", content)
    if lost == "file":
        (directory / "b.bin").unlink()
    assert cache.find(source.manifest) is None
    assert source.is_whole(cache.insert(source.manifest, source.fill))
    again = len(source.chunks_read()) - len(source.all_chunks())
    assert again == (11 if lost == "file" else 1)
    cache.wait_synced()
    cache.verify(source.manifest)


def test_a_doubtful_artifact_in_a_read_only_cache_is_verified_by_each(
    source: Source, read_only_cache: Callable[[Callable[[NodeCache], object]], NodeCache]
) -> None:
    """Nobody there can mend it, so a damaged one is refused."""

    def fill(cache: NodeCache) -> None:
        forget_sync(cache, cache.insert(source.manifest, source.fill))

    cache = read_only_cache(fill)
    directory = cache.find(source.manifest)
    assert directory is not None
    with pytest.raises(OSError, match="denied"):
        (directory / ".unsynced").unlink()


def test_damage_in_a_read_only_cache_is_refused(
    source: Source, read_only_cache: Callable[[Callable[[NodeCache], object]], NodeCache]
) -> None:
    def fill(cache: NodeCache) -> None:
        directory = cache.insert(source.manifest, source.fill)
        forget_sync(cache, directory)
        damage(directory / "a.txt", b"abd")

    with pytest.raises(ArtifactCorruptError, match=r"'a.txt' is not what was verified"):
        read_only_cache(fill).find(source.manifest)


def test_a_read_only_cache_serves(
    source: Source, read_only_cache: Callable[[Callable[[NodeCache], object]], NodeCache]
) -> None:
    def fill(cache: NodeCache) -> None:
        cache.insert(source.manifest, source.fill)
        cache.wait_synced()

    cache = read_only_cache(fill)
    pin = cache.pin(source.manifest)
    directory = cache.find(source.manifest)
    assert directory is not None
    assert source.is_whole(directory)
    assert [artifact.hex for artifact in cache.eviction.artifacts()] == [source.manifest.hex]
    pin.release()


def test_a_manifest_that_is_not_the_artifacts_own_is_refused(
    cache: NodeCache, source: Source, sources: Callable[..., Source]
) -> None:
    directory, other = cache.insert(source.manifest, source.fill), sources("v2", 10)
    (directory / "manifest.json").write_bytes(other.manifest.to_bytes())
    with pytest.raises(ArtifactCorruptError, match=f"has digest {other.manifest.hex}, expected that of its folder"):
        read_manifest(directory)


def test_a_file_that_is_too_large_for_any_disk_is_refused_at_once(cache: NodeCache, source: Source) -> None:
    size = shutil.disk_usage(cache.directory.parent).total + 1
    chunks = tuple("0" * 64 for _ in range(-(-size // 2**28)))
    huge = Manifest(
        kind="models", name="m", version="v1", files=(FileEntry("huge", size, chunks),), metadata={}, chunk_bytes=2**28
    )
    with pytest.raises(ArtifactError, match=rf"needs {size} more bytes .* Free some space"):
        cache.insert(huge, source.fill)
    assert source.chunks_read() == []
