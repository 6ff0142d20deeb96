"""SIGKILL at random points of publish, fetch and clean-up: nothing unverified is ever visible, the next one works."""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from loadtests.s3_server import S3Server
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import digest, matching
from rag_stack.artifacts.fetch import Origin
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.pin import is_pinned
from tests.killed import Child, Death, Place, clean, deaths, fetch, fetch_then_clean, publish
from tests.s3 import use

pytestmark = pytest.mark.long

ROUNDS = pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.slow)])
CHUNK_BYTES = 64 * 1024
SIZES = {
    "config.json": 700,
    "empty.safetensors": 0,
    "model-00001-of-00002.safetensors": 60 * CHUNK_BYTES,
    "model-00002-of-00002.safetensors": 30 * CHUNK_BYTES + 123,
    "a folder/ünïcode, 100% + odd & 'quoted' = #1.bin": 10 * CHUNK_BYTES + 1,
    "a folder/deeper/one byte": 1,
}
SIZE = sum(SIZES.values())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory, content = tmp_path / "source", random.Random(7)
    for path, size in SIZES.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content.randbytes(size))
    return directory


@pytest.fixture(params=["file", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A directory as the store, or a bucket of a real S3 server."""
    if request.param == "file":
        yield _on_files(tmp_path)
        return
    use(monkeypatch, s3_server.environment)
    bucket = s3_server.directory / f"kill-{uuid4().hex}"
    bucket.mkdir()
    yield Place(f"s3://{bucket.name}", bucket, tmp_path / "cache", tmp_path, environment=s3_server.environment)


@ROUNDS
def test_a_killed_publish_shows_nothing_or_the_whole(place: Place, source: Path, rounds: int) -> None:
    catalog = Catalog(open_store(place.store_url))
    # rclone ignores conditions, so nothing is ever promoted there.
    promote = place.store_url.startswith("file://")
    work = partial(publish, place, source, promote=promote)
    died = 0
    for number, death in enumerate(
        deaths(partial(work, "measured"), place, rounds=rounds, grows_bytes=SIZE, seed=rounds)
    ):
        (source / "config.json").write_text(f"round {number}")
        died += Child(partial(work, f"v{number}"), place, death).died()
        _check_visible(catalog)
        if number % 3 == 0:
            # The next one is killed too, at another point.
            died += Child(partial(work, f"v{number}"), place, Death(grown_bytes=SIZE // 3)).died()
            _check_visible(catalog)
        publish(place, source, f"v{number}", promote=promote)
        assert f"v{number}" in catalog.versions("models", "m")
        _check_visible(catalog)
        if promote:
            assert catalog.resolve("models", "m").version == f"v{number}"
            # An empty lock file may stay for each kill at the very end.
            locks = {f"{version}/.manifest.json.lock" for version in catalog.versions("models", "m")}
            assert _files(place.store / "models" / "m") - locks == _published(catalog)
        shutil.rmtree(place.store / "models" / "m" / f"v{number - 1}", ignore_errors=True)
    # Otherwise this shows nothing.
    assert died > rounds / 3


@ROUNDS
def test_a_killed_fetch_is_gone_on_with(place: Place, source: Path, rounds: int) -> None:
    manifest = _publish_in_chunks(place, source)
    tiers = place.tiers()
    died = resumed = 0
    for number, death in enumerate(
        deaths(partial(fetch_then_clean, place, manifest), place, rounds=rounds, grows_bytes=SIZE, seed=rounds)
    ):
        died += Child(partial(fetch, place, manifest), place, death).died()
        present = _check_cache(tiers.cache, manifest)
        if number % 4 == 3:
            # Nobody goes on with it: all of it is cleaned away.
            tiers.cache.collect(0)
            assert _files(place.cache) == set()
            continue
        local = tiers.ensure_local(manifest)
        assert sum(local.moved.values()) == manifest.size_bytes - present
        resumed += 0 < present < manifest.size_bytes
        tiers.cache.wait_synced()
        assert _check_cache(tiers.cache, manifest, pinned=True) == manifest.size_bytes
        assert {entry.path: (local.path / entry.path).read_bytes() for entry in manifest.files} == {
            path: (source / path).read_bytes() for path in SIZES
        }
        local.pin.release()
        tiers.cache.collect(0)
        assert _files(place.cache) == set()
    assert died > rounds / 3
    assert resumed > 0


@ROUNDS
def test_kill_after_kill_leaves_no_more_than_two_copies(place: Place, source: Path, rounds: int) -> None:
    manifest = _publish_in_chunks(place, source)
    cache = NodeCache(place.cache)
    # One that was being evicted, one that was being fetched.
    most = 2 * (manifest.size_bytes + len(manifest.to_bytes()) + len(manifest.chunks()) + 1000)
    for death in deaths(
        partial(fetch_then_clean, place, manifest), place, rounds=rounds, grows_bytes=SIZE, seed=rounds + 1
    ):
        Child(partial(fetch_then_clean, place, manifest), place, death).died()
        _check_cache(cache, manifest)
        assert cache.eviction.used_bytes() <= most
        assert len(_files(place.cache)) <= 2 * len(SIZES) + 6
    local = place.tiers().ensure_local(manifest)
    cache.verify(manifest)
    local.pin.release()
    cache.collect(0)
    assert _files(place.cache) == set()


@ROUNDS
def test_who_waits_for_a_killed_fetch_finishes_it(tmp_path: Path, source: Path, rounds: int) -> None:
    place = _on_files(tmp_path)
    manifest = _publish_in_chunks(place, source)
    cache = NodeCache(place.cache)
    died = 0
    for death in deaths(
        partial(fetch_then_clean, place, manifest), place, rounds=rounds, grows_bytes=SIZE, seed=rounds + 2
    ):
        work = partial(fetch, place, manifest)
        doomed, other = Child(work, place, death), Child(work, place, Death())
        died += doomed.died()
        assert not other.died()
        assert _check_cache(cache, manifest) == manifest.size_bytes
        clean(place)
        assert _files(place.cache) == set()
    assert died > rounds / 3


def _on_files(directory: Path) -> Place:
    return Place(f"file://{directory}/store", directory / "store", directory / "cache", watched=directory)


def _publish_in_chunks(place: Place, source: Path) -> Manifest:
    """Published with chunks so small that little files have many."""
    catalog = Catalog(open_store(place.store_url))
    whole = catalog.publish(source, kind="models", name="m", metadata={}, version="whole")
    files = tuple(_entry(source, entry.path) for entry in whole.files)
    manifest = replace(whole, version="chunked", files=files, chunk_bytes=CHUNK_BYTES)
    for entry in files:
        catalog.store.upload(source / entry.path, f"{manifest.ref}/{entry.path}")
    catalog.store.put_bytes(f"{manifest.ref}/manifest.json", manifest.to_bytes())
    return catalog.manifest(manifest.ref)


def _entry(source: Path, path: str) -> FileEntry:
    content = (source / path).read_bytes()
    pieces = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    return FileEntry(path, len(content), tuple(map(digest, pieces)))


def _check_visible(catalog: Catalog) -> None:
    """Every version that is listed is whole, and so is what is promoted."""
    for version in catalog.versions("models", "m"):
        manifest = catalog.resolve("models", "m", version)
        origin = Origin(catalog.store, manifest)
        for chunk in manifest.chunks():
            chunk.verify(origin.read(chunk))
        origin.close()
    if catalog.promoted("models", "m") is not None:
        assert catalog.resolve("models", "m").version in catalog.versions("models", "m")


def _check_cache(cache: NodeCache, manifest: Manifest, *, pinned: bool = False) -> int:
    """What is visible is verified, the dead hold nothing; the bytes that are there already."""
    assert is_pinned(cache.directory / "pins" / manifest.hex) is pinned
    found = cache.find(manifest)
    if found is not None:
        cache.verify(manifest)
        assert cache.manifest(manifest.digest) == manifest
        return manifest.size_bytes
    chunks = manifest.chunks()
    present = matching(cache.directory / "partial" / manifest.hex, chunks)
    return sum(chunk.size_bytes for chunk in chunks if chunk.index in present)


def _published(catalog: Catalog) -> set[str]:
    """The files that a store should have for its versions of models/m."""
    manifests = [catalog.resolve("models", "m", version) for version in catalog.versions("models", "m")]
    return {"PROMOTED"} | {
        f"{manifest.version}/{path}"
        for manifest in manifests
        for path in ("manifest.json", *(entry.path for entry in manifest.files))
    }


def _files(directory: Path) -> set[str]:
    return {
        os.path.relpath(Path(folder) / name, directory) for folder, _, names in os.walk(directory) for name in names
    }
