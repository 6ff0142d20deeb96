"""What bad networks, bad servers and bad bytes do to a fetch: it recovers or says what is wrong.

Nothing unverified is ever visible, what came is not fetched again, and a version that serves goes on serving. A real
S3 server answers, through a proxy that damages its answers.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from loadtests.s3_server import S3Server
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import CHUNK_BYTES
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.s3_store import S3Store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError
from rag_stack.metrics import MemoryRecorder
from tests.s3 import Fault, FaultProxy, damage, fault_proxy, use

pytestmark = pytest.mark.long

SHARD = "model-00001-of-00002.safetensors"
LAST_SHARD = "model-00002-of-00002.safetensors"
SIZE_BYTES = 2 * CHUNK_BYTES + 12_345
# The client's own number of tries of one request, and how long it waits for a silent server.
ATTEMPTS = 3
STALL_S = 2


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def catalog(proxy: FaultProxy, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """Of an empty bucket, all of whose answers come through the proxy."""
    proxy.inject()
    use(monkeypatch, proxy.environment)
    return Catalog(S3Store(f"s3://{bucket.name}/root", stall_timeout_s=STALL_S, attempts=ATTEMPTS))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / SHARD).write_bytes(os.urandom(SIZE_BYTES))
    (directory / LAST_SHARD).write_bytes(os.urandom(1000))
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def manifest(catalog: Catalog, source: Path) -> Manifest:
    return catalog.publish(source, kind="models", name="m", metadata={}, version="v1")


@pytest.fixture
def shard(bucket: Path, manifest: Manifest) -> Path:
    """Where the server keeps the shard."""
    return bucket / "root" / str(manifest.ref) / SHARD


@pytest.fixture
def tiers(catalog: Catalog, tmp_path: Path) -> Tiers:
    return Tiers(catalog, NodeCache(tmp_path / "cache"), MemoryRecorder())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the first chunk and a half."""
    directory = tmp_path / "disk"
    directory.mkdir()
    size = f"size={CHUNK_BYTES + CHUNK_BYTES // 2}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", directory], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def check_whole(path: Path, source: Path) -> None:
    for file in source.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes()


def visible(cache: NodeCache) -> list[str]:
    """The names of all artifacts that a process could open."""
    return [path.name for path in (cache.directory / "artifacts").glob("*")]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("error", times=2), id="slow-down"),
        pytest.param(Fault("error", times=2, status=500, code="InternalError"), id="internal-error"),
        pytest.param(Fault("cut", after_bytes=70_000, times=1), id="a-200-cut-short"),
        pytest.param(Fault("cut", after_bytes=0, times=1), id="nothing-after-the-head"),
        pytest.param(Fault("reset", after_bytes=70_000, times=1), id="reset"),
        pytest.param(Fault("stall", after_bytes=70_000, times=1), id="stall"),
        pytest.param(Fault("flip", after_bytes=70_000, times=1), id="flipped-byte"),
    ],
)
def test_what_passes_is_recovered_from(
    tiers: Tiers, manifest: Manifest, source: Path, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.inject(replace(fault, path=SHARD))
    local = tiers.ensure_local(manifest)
    assert proxy.fired == fault.times
    check_whole(local.path, source)
    # A chunk that had to come twice counts once: what is told is what the artifact took.
    assert local.moved == {"object_store": manifest.size_bytes}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(Fault("error"), "check AWS_ENDPOINT_URL", id="a-storm-of-503"),
        pytest.param(Fault("cut", after_bytes=70_000), "check AWS_ENDPOINT_URL", id="every-200-cut-short"),
        pytest.param(Fault("reset", after_bytes=70_000), "check AWS_ENDPOINT_URL", id="resets"),
        pytest.param(Fault("stall", after_bytes=70_000), "check AWS_ENDPOINT_URL", id="stalls"),
        pytest.param(
            Fault("error", status=400, code="ExpiredToken"), "check AWS_ACCESS_KEY_ID", id="expired-credentials"
        ),
        pytest.param(Fault("error", status=403, code="AccessDenied"), "check AWS_ACCESS_KEY_ID", id="access-denied"),
    ],
)
def test_what_stays_is_told_and_the_next_fetch_goes_on(
    tiers: Tiers, manifest: Manifest, source: Path, proxy: FaultProxy, fault: Fault, says: str
) -> None:
    proxy.inject(replace(fault, path=SHARD))
    with pytest.raises(ArtifactError, match=says) as told:
        tiers.ensure_local(manifest)
    assert SHARD in told.value.message
    assert proxy.fired >= 1
    assert visible(tiers.cache) == []
    proxy.inject()
    check_whole(tiers.ensure_local(manifest).path, source)


def test_bytes_that_are_flipped_each_time_are_refused(
    tiers: Tiers, manifest: Manifest, source: Path, proxy: FaultProxy, shard: Path
) -> None:
    damage(shard, offset=CHUNK_BYTES + 5)
    with pytest.raises(ArtifactCorruptError, match=SHARD):
        tiers.ensure_local(manifest)
    assert visible(tiers.cache) == []
    damage(shard, offset=CHUNK_BYTES + 5)
    local = tiers.ensure_local(manifest)
    check_whole(local.path, source)
    # What had come and was right stayed.
    assert local.moved["object_store"] <= manifest.size_bytes - CHUNK_BYTES


@pytest.mark.parametrize("size_bytes", [0, 1000, SIZE_BYTES - 1, SIZE_BYTES + 1])
def test_an_object_of_another_size_is_refused(tiers: Tiers, manifest: Manifest, shard: Path, size_bytes: int) -> None:
    os.truncate(shard, size_bytes)
    with pytest.raises(ArtifactCorruptError, match=f"has {size_bytes} bytes .* expected {SIZE_BYTES}"):
        tiers.ensure_local(manifest)
    assert visible(tiers.cache) == []


def test_an_artifact_that_disappears_before_its_fetch(tiers: Tiers, manifest: Manifest, shard: Path) -> None:
    shard.unlink()
    with pytest.raises(ArtifactCorruptError, match="is gone from"):
        tiers.ensure_local(manifest)
    assert visible(tiers.cache) == []
    (shard.parent / "manifest.json").unlink()
    with pytest.raises(ArtifactNotFoundError, match="v1"):
        tiers.resolve("models", "m", "v1")


def test_an_artifact_that_disappears_during_its_fetch(
    tiers: Tiers, manifest: Manifest, source: Path, proxy: FaultProxy, shard: Path
) -> None:
    proxy.inject(Fault("stall", after_bytes=70_000, path=SHARD, times=1))
    errors: list[BaseException] = []

    def fetch() -> None:
        try:
            tiers.ensure_local(manifest)
        except ArtifactError as exc:
            errors.append(exc)

    thread = threading.Thread(target=fetch)
    thread.start()
    assert proxy.stalled.wait(30)
    shard.unlink()
    thread.join(60)
    assert not thread.is_alive()
    assert [SHARD in str(error) for error in errors] == [True]
    assert visible(tiers.cache) == []


@pytest.mark.parametrize(
    "path", ["../../../outside", "/etc/outside", "a/../../outside", "a//b", ".", "a\\..\\b/../../outside"]
)
def test_a_path_that_climbs_out_is_refused(tiers: Tiers, manifest: Manifest, shard: Path, path: str) -> None:
    stored = shard.parent / "manifest.json"
    stored.write_bytes(
        stored.read_bytes().replace(b'"config.json"', b'"' + path.encode().replace(b"\\", b"\\\\") + b'"')
    )
    with pytest.raises(ArtifactError, match="manifest"):
        tiers.resolve("models", "m", "v1")
    assert visible(tiers.cache) == []


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 2}'])
def test_a_manifest_that_is_none_is_refused(tiers: Tiers, manifest: Manifest, shard: Path, raw: bytes) -> None:
    (shard.parent / "manifest.json").write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        tiers.resolve("models", "m", "v1")


def test_a_disk_that_fills_up_says_so_and_keeps_nothing_half(
    catalog: Catalog, manifest: Manifest, source: Path, small_disk: Path
) -> None:
    tiers = Tiers(catalog, NodeCache(small_disk / "cache"), MemoryRecorder())
    with pytest.raises(ArtifactError, match=r"room|space"):
        tiers.ensure_local(manifest)
    assert visible(tiers.cache) == []
    subprocess.run(["mount", "-o", f"remount,size={8 * CHUNK_BYTES}", small_disk], check=True)
    check_whole(tiers.ensure_local(manifest).path, source)


def test_a_version_that_serves_goes_on_while_the_next_cannot_come(
    tiers: Tiers, manifest: Manifest, source: Path, proxy: FaultProxy, tmp_path: Path
) -> None:
    serving = tiers.ensure_local(manifest)
    mapped = (serving.path / SHARD).open("rb")
    following = tmp_path / "following"
    following.mkdir()
    (following / SHARD).write_bytes(os.urandom(SIZE_BYTES))
    catalog = tiers.catalog
    published = catalog.publish(following, kind="models", name="m", metadata={}, version="v2")
    proxy.inject(Fault("error", path=f"v2/{SHARD}"))
    with pytest.raises(ArtifactError):
        tiers.ensure_local(published)
    with mapped:
        assert mapped.read() == (source / SHARD).read_bytes()
    # A further replica on this node starts from it, though the store answers nothing at all.
    proxy.inject(Fault("error"), Fault("error", method="HEAD"))
    again = Tiers(Catalog(S3Store(catalog.store.url, attempts=1)), NodeCache(tiers.cache.directory), MemoryRecorder())
    found = again.ensure_local(again.resolve("models", "m", "v1", digest=manifest.digest))
    assert (found.path, found.moved) == (serving.path, {})
    assert proxy.requests == []


def test_a_read_only_cache_serves_what_it_has_and_fetches_nothing(
    catalog: Catalog, manifest: Manifest, source: Path, read_only: Callable[[Path], Path], tmp_path: Path
) -> None:
    cache = NodeCache(tmp_path / "cache")
    Tiers(catalog, cache, MemoryRecorder()).ensure_local(manifest)
    cache.wait_synced()
    tiers = Tiers(catalog, NodeCache(read_only(cache.directory)), MemoryRecorder())
    check_whole(tiers.ensure_local(manifest).path, source)
    (source / "config.json").write_text(f'{{"changed": "{uuid4().hex}"}}')
    other = catalog.publish(source, kind="models", name="m", metadata={}, version="v2")
    with pytest.raises(ArtifactError, match="cannot"):
        tiers.ensure_local(other)
    assert visible(cache) == [manifest.hex]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Shows a directory a second time, on a file system that is mounted read-only: not even root writes there."""
    places: list[Path] = []

    def show(directory: Path) -> Path:
        place = tmp_path / f"read-only-{len(places)}"
        place.mkdir()
        for options in (["--bind", str(directory), str(place)], ["-o", "remount,ro,bind", str(place)]):
            mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
            if mounted.returncode:
                pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
            if place not in places:
                places.append(place)
        return place

    yield show
    for place in places:
        subprocess.run(["umount", "--lazy", place], check=True)
