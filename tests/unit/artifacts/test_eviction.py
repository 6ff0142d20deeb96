"""What leaves a full cache: the least recently used, and never what a process uses."""

import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.eviction import CachedArtifact
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.partial import Partial
from rag_stack.errors import ArtifactError
from rag_stack.metrics import CACHE_EVICTED_BYTES, CACHE_EVICTIONS, MemoryRecorder
from tests.unit.artifacts.conftest import Source

Sources = Callable[..., Source]
# A manifest beside each counts, too.
LIMIT = 35_000


@pytest.fixture
def limited(tmp_path: Path) -> NodeCache:
    return NodeCache(tmp_path / "cache", limit_bytes=LIMIT)


def insert(cache: NodeCache, *sources: Source) -> None:
    """Bring them in, each used later than the one before."""
    for number, source in enumerate(sources):
        cache.insert(source.manifest, source.fill)
        cache.pin(source.manifest).release()
        os.utime(cache.directory / "pins" / source.manifest.hex, (number, number))
    cache.wait_synced()


def cached(cache: NodeCache, *sources: Source) -> list[str]:
    """Which of the sources are whole in the cache."""
    found = [(source, cache.find(source.manifest)) for source in sources]
    assert all(source.is_whole(path) for source, path in found if path is not None)
    return [source.manifest.version for source, path in found if path is not None]


def hexes(artifacts: tuple[CachedArtifact, ...]) -> list[str]:
    return [artifact.hex for artifact in artifacts]


def test_the_least_recently_used_makes_room(limited: NodeCache, sources: Sources) -> None:
    a, b, c, d = (sources(version, 10_000) for version in "abcd")
    insert(limited, a, b, c)
    limited.pin(a.manifest).release()
    insert(limited, d)
    assert cached(limited, a, b, c, d) == ["a", "c", "d"]
    assert limited.eviction.used_bytes() <= LIMIT


def test_what_leaves_is_counted(tmp_path: Path, sources: Sources) -> None:
    recorder = MemoryRecorder()
    cache = NodeCache(tmp_path / "cache", limit_bytes=LIMIT, recorder=recorder)
    insert(cache, *(sources(version, 10_000) for version in "abc"))
    assert recorder.values(CACHE_EVICTIONS) == []
    insert(cache, *(sources(version, 10_000) for version in "de"))
    assert recorder.values(CACHE_EVICTIONS) == [1, 1]
    assert all(10_000 < size < 11_000 for size in recorder.values(CACHE_EVICTED_BYTES))


def test_what_is_pinned_stays(limited: NodeCache, sources: Sources) -> None:
    a, b, c, d = (sources(version, 10_000) for version in "abcd")
    insert(limited, a, b, c)
    pins = [limited.pin(source.manifest) for source in (a, b)]
    insert(limited, d)
    assert cached(limited, a, b, c, d) == ["a", "b", "d"]
    pins.append(limited.pin(d.manifest))
    with pytest.raises(ArtifactError, match=f"in use by processes .*{a.manifest.hex[:12]}") as failure:
        limited.insert(c.manifest, c.fill)
    assert f"its limit is {LIMIT}" in failure.value.message
    assert cached(limited, a, b, c, d) == ["a", "b", "d"]
    for pin in pins:
        pin.release()
    insert(limited, c)
    assert "c" in cached(limited, c)


def test_what_cannot_fit_evicts_nothing(limited: NodeCache, sources: Sources) -> None:
    a, b, huge = sources("a", 10_000), sources("b", 10_000), sources("huge", LIMIT + 1)
    insert(limited, a, b)
    with pytest.raises(ArtifactError, match=f"needs {LIMIT + 1} more bytes"):
        limited.insert(huge.manifest, huge.fill)
    assert cached(limited, a, b) == ["a", "b"]
    assert huge.chunks_read() == []


def test_a_killed_processs_pin_holds_nothing(limited: NodeCache, sources: Sources, processes: ForkContext) -> None:
    a, b = sources("a", 20_000), sources("b", 20_000)
    insert(limited, a)
    pinned, never = processes.Event(), processes.Event()

    def use() -> None:
        limited.pin(a.manifest)
        pinned.set()
        never.wait()

    user = processes.Process(target=use)
    user.start()
    assert pinned.wait(30)
    with pytest.raises(ArtifactError, match="not to be evicted"):
        limited.insert(b.manifest, b.fill)
    assert user.pid is not None
    os.kill(user.pid, signal.SIGKILL)
    user.join(30)
    insert(limited, b)
    assert cached(limited, a, b) == ["b"]


def test_two_fetches_at_once_do_not_overbook(limited: NodeCache, sources: Sources) -> None:
    a, b = sources("a", 20_000), sources("b", 20_000)

    def fill(partial: Partial) -> None:
        # Not a byte of it is there yet, but its place is taken.
        with pytest.raises(ArtifactError, match=f"its limit is {LIMIT}"):
            limited.insert(b.manifest, b.fill)
        a.fill(partial)

    limited.insert(a.manifest, fill)
    limited.wait_synced()
    assert b.chunks_read() == []
    assert cached(limited, a) == ["a"]


def test_a_full_disk_makes_the_least_recently_used_go(cache: NodeCache, sources: Sources) -> None:
    a = sources("a", 10)
    insert(cache, a)
    ballast = cache.directory / "artifacts" / a.manifest.hex / "w.bin"
    ballast.chmod(0o644)
    with ballast.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 2**30)
        except OSError as exc:
            pytest.skip(f"needs a gigabyte and a file system that reserves: {exc}")
    # More than there is, by half of what the other can give.
    size = shutil.disk_usage(cache.directory).free + 2**29
    chunks = tuple("0" * 64 for _ in range(-(-size // 2**28)))
    entry = FileEntry("huge", size, chunks)
    huge = Manifest(kind="models", name="m", version="v1", files=(entry,), metadata={}, chunk_bytes=2**28)
    seen: list[int] = []

    def fill(partial: Partial) -> None:
        seen.append(len(partial.chunks))
        raise ArtifactError("the network is away")

    pin = cache.pin(a.manifest)
    with pytest.raises(ArtifactError, match=f"needs {size} more bytes"):
        cache.insert(huge, fill)
    pin.release()
    assert seen == []
    with pytest.raises(ArtifactError, match="the network is away"):
        cache.insert(huge, fill)
    assert seen == [len(chunks)]
    assert cache.eviction.artifacts() == []


def test_collecting_evicts_down_to_a_limit(cache: NodeCache, sources: Sources) -> None:
    a, b, c = (sources(version, 10_000) for version in "abc")
    insert(cache, a, b, c)
    assert cache.collect(None).evicted == ()
    pin = cache.pin(a.manifest)
    os.utime(cache.directory / "pins" / a.manifest.hex, (0, 0))
    assert hexes(cache.collect(25_000).evicted) == [b.manifest.hex]
    assert hexes(cache.collect(0).evicted) == [c.manifest.hex]
    assert cached(cache, a, b, c) == ["a"]
    pin.release()
    assert hexes(cache.collect(0).evicted) == [a.manifest.hex]
    assert cache.eviction.used_bytes() == 0
    assert list((cache.directory / "pins").iterdir()) == []


def test_what_killed_processes_left_is_collected(cache: NodeCache, sources: Sources, processes: ForkContext) -> None:
    a, b, whole = (sources(version, 10_000) for version in "abc")
    insert(cache, whole)
    events = {version: (processes.Event(), processes.Event()) for version in "ab"}

    def fetch(source: Source) -> None:
        halfway, goes_on = events[source.manifest.version]

        def stall(chunk: Any) -> None:
            if chunk.index == 5:
                halfway.set()
                goes_on.wait()

        source.before = stall
        cache.pin(source.manifest)
        cache.insert(source.manifest, source.fill)
        cache.wait_synced()

    fetchers = [processes.Process(target=fetch, args=(source,)) for source in (a, b)]
    for fetcher, (halfway, _) in zip(fetchers, events.values(), strict=True):
        fetcher.start()
        assert halfway.wait(30)
    killed, living = fetchers
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(30)
    # And an eviction that was killed while it deleted.
    (cache.directory / "partial" / f"{'e' * 64}.evicted").mkdir()
    (cache.directory / "partial" / f"{'e' * 64}.evicted" / "w.bin").write_bytes(b"x" * 5000)

    collected = cache.collect(None)
    own = a.manifest.hex
    assert collected.leavings == tuple(sorted([own, f"{own}.have", f"{own}.lock", f"{'e' * 64}.evicted"]))
    assert collected.leavings_bytes >= 10_000
    assert collected.evicted == ()
    events["b"][1].set()
    living.join(30)
    assert living.exitcode == 0
    assert cached(cache, a, b, whole) == ["b", "c"]
    assert b.chunks_read() == b.all_chunks()
    assert cache.collect(None).leavings == ()
    assert list((cache.directory / "partial").iterdir()) == []


def test_what_killed_fetches_left_makes_room_first(limited: NodeCache, sources: Sources) -> None:
    a, left, new = (sources(version, 10_000) for version in ("a", "left", "new"))
    insert(limited, a)

    def fail(partial: Partial) -> None:
        raise ArtifactError("the network is away")

    for source in (left, sources("left too", 10_000)):
        with pytest.raises(ArtifactError, match="the network is away"):
            limited.insert(source.manifest, fail)
    insert(limited, new)
    assert cached(limited, a, left, new) == ["a", "new"]


def test_what_an_older_release_cached_is_collected(cache: NodeCache, sources: Sources) -> None:
    whole = sources("a", 10_000)
    insert(cache, whole)
    old = cache.directory / "artifacts" / ("1" * 64)
    old.mkdir()
    (old / "model.safetensors").write_bytes(b"x" * 1000)
    listed = {artifact.hex: artifact.size_bytes for artifact in cache.eviction.artifacts()}
    assert listed["1" * 64] == 1000
    assert hexes(cache.collect(None).evicted) == ["1" * 64]
    assert not old.exists()
    assert cached(cache, whole) == ["a"]


def test_users_fetchers_and_evictors_at_once(tmp_path: Path, sources: Sources, processes: ForkContext) -> None:
    """Four processes use six artifacts where two fit, while another empties the cache as fast as it can."""
    every = [sources(version, 10_000) for version in "abcdef"]
    cache = NodeCache(tmp_path / "cache", limit_bytes=10 * LIMIT)
    start, done = processes.Barrier(5), processes.Event()

    def use(seed: int) -> None:
        start.wait(30)
        for turn in range(40):
            source = every[(seed * 7 + turn * (seed + 1)) % len(every)]
            pin = cache.pin(source.manifest)
            directory = cache.find(source.manifest) or cache.insert(source.manifest, source.fill)
            assert source.is_whole(directory)
            pin.release()
        cache.wait_synced()

    def empty() -> None:
        start.wait(30)
        while not done.is_set():
            cache.collect(0)
            cache.eviction.artifacts()

    users = [processes.Process(target=use, args=(seed,)) for seed in range(4)]
    evictor = processes.Process(target=empty)
    for process in (*users, evictor):
        process.start()
    for process in users:
        process.join(120)
    done.set()
    evictor.join(30)
    assert [process.exitcode for process in (*users, evictor)] == [0] * 5
    # Something was evicted, and came back.
    assert sum(len(source.chunks_read()) for source in every) > sum(len(source.all_chunks()) for source in every)
    cached(cache, *every)
