"""What every object store must do, on a real S3 server too, and what only some can."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from uuid import uuid4

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ArtifactError, ArtifactNotFoundError, PromotionConflictError
from rag_stack.metrics import MemoryRecorder

ODD_NAMES = (
    "spaces and ünïcode/#1?%20*[x]&y;~.bin",
    "a+b=c@d,e$f!g'h(i):j^`{k}|\".bin",
    "日本語 🌊/100%.bin",
    "a\\b c",
)
SHARDS = 40


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    match request.param:
        case "s3":
            return open_store(f"s3://{request.getfixturevalue('bucket').name}/below/a prefix")
        case "memory":
            return open_store(f"memory://{uuid4().hex}")
        case _:
            return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def local(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def test_bytes_come_back(store: ObjectStore) -> None:
    store.put_bytes("a/b.json", b"first")
    store.put_bytes("a/b.json", b"second")
    assert store.read_bytes("a/b.json") == b"second"
    with store.open("a/b.json") as file:
        assert file.read(3) == b"sec"
        assert file.read() == b"ond"


def test_every_object_below_a_prefix_is_an_entry(store: ObjectStore) -> None:
    assert store.entries("a/v1") == []
    for key in ("a/v1/x", "a/v1/sub/y", "a/v1/.dotted", "a/v10/x", "a/other"):
        # The server has a time from before a write and one from after it: they agree where no second ends in between.
        second = 0
        while int(time.time()) != second:
            second = int(time.time())
            store.put_bytes(key, key.encode())
    entries = store.entries("a/v1")
    assert [(each.key, each.size_bytes) for each in entries] == [
        ("a/v1/.dotted", 12),
        ("a/v1/sub/y", 10),
        ("a/v1/x", 6),
    ]
    for each in entries:
        # A HEAD's answer has no parts of a second, a listing may.
        assert abs(each.modified_at - store.modified_at(each.key)) < timedelta(seconds=1)


def test_the_store_tells_its_time(store: ObjectStore) -> None:
    store.put_bytes("a", b"first")
    first = store.modified_at("a")
    assert first.utcoffset() == timedelta(0)
    assert timedelta(seconds=-1) < store.now() - first < timedelta(minutes=1)
    with pytest.raises(ArtifactNotFoundError):
        store.modified_at("b")


def test_a_missing_object_is_not_found(store: ObjectStore) -> None:
    store.put_bytes("a/b", b"x")
    assert store.exists("a/b")
    for key in ("a/c", "nothing/here", "a"):
        assert not store.exists(key)
        with pytest.raises(ArtifactNotFoundError, match=key):
            store.read_bytes(key)


def test_names_are_listed_one_level_deep(store: ObjectStore) -> None:
    for key in ("kind/b/1", "kind/a/1", "kind/a/2", "kind/.hidden", "kind/file"):
        store.put_bytes(key, b"x")
    assert store.list_names("kind") == ["a", "b", "file"]
    assert store.list_names("kind/a") == ["1", "2"]
    assert store.list_names("other") == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_may_hold_unusual_characters(store: ObjectStore, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(name.encode())
    store.upload(source, f"a/{name}")
    assert store.read_bytes(f"a/{name}") == name.encode()
    assert store.exists(f"a/{name}")
    assert store.list_names("a") == [name.partition("/")[0]]
    with closing(store.reader(f"a/{name}")) as reader:
        assert bytes(reader.read_at(2, 3)) == name.encode()[2:5]


@pytest.mark.parametrize("size", [0, 1, 9 * 1024 * 1024])
def test_a_file_comes_back_as_it_was(store: ObjectStore, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    store.upload(source, "a/b")
    assert store.read_bytes("a/b") == source.read_bytes()


def test_pieces_are_read_by_many_at_once(store: ObjectStore) -> None:
    content = os.urandom(1_000_003)
    store.put_bytes("a/b", content)
    offsets = range(0, len(content), 100_000)
    with closing(store.reader("a/b")) as reader, ThreadPoolExecutor(4) as pool:
        assert reader.size_bytes == len(content)
        pieces = pool.map(lambda offset: bytes(reader.read_at(offset, min(100_000, len(content) - offset))), offsets)
        assert b"".join(pieces) == content
    with pytest.raises(ArtifactNotFoundError, match="a/c"):
        store.reader("a/c")


def test_an_object_is_created_once_and_deleted(store: ObjectStore) -> None:
    assert store.create("a/b", b"first")
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert store.create("a/b", b"second")
    assert store.read_bytes("a/b") == b"second"


def test_an_artifact_of_many_shards_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = [f"model-{i:05d}-of-{SHARDS:05d}.safetensors" for i in range(SHARDS)] + list(ODD_NAMES)
    for place, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        # Every fifth file is empty.
        (source / name).write_bytes(os.urandom(1000 * (place % 5)))
    catalog = Catalog(store)
    manifest = catalog.publish(source, kind="models", name="m", metadata={})
    assert catalog.versions("models", "m") == [manifest.version]
    tiers = Tiers(catalog, NodeCache(tmp_path / "cache"), MemoryRecorder())
    local = tiers.ensure_local(catalog.resolve("models", "m", manifest.version))
    assert {name: (local.path / name).read_bytes() for name in names} == {
        name: (source / name).read_bytes() for name in names
    }


def test_a_missing_source_is_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read .*absent"):
        store.upload(tmp_path / "absent", "key")
    assert not store.exists("key")


def test_compare_and_set_needs_what_was_expected(local: ObjectStore) -> None:
    with pytest.raises(PromotionConflictError):
        local.compare_and_set("p", b"1", expected=b"0")
    local.compare_and_set("p", b"1", expected=None)
    with pytest.raises(PromotionConflictError):
        local.compare_and_set("p", b"2", expected=None)
    local.compare_and_set("p", b"2", expected=b"1")
    assert local.read_bytes("p") == b"2"
    assert local.list_names("") == ["p"]


def test_of_racing_processes_exactly_one_moves_the_pointer(local: ObjectStore) -> None:
    context, rounds, racers = get_context("fork"), 40, 3
    start, wins = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=race, args=(local, start, wins, rounds, i)) for i in range(racers)]
    for process in processes:
        process.start()
    won = [wins.get(timeout=60) for _ in range(racers)]
    for process in processes:
        process.join(60)
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * rounds


def race(store: ObjectStore, start: Barrier, wins: "Queue[list[bool]]", rounds: int, racer: int) -> None:
    """Try to win each round; a round's key is first created and then replaced."""
    won = []
    for turn in range(rounds):
        key, expected = f"pointer-{turn // 2}", None
        if turn % 2:
            expected = store.read_bytes(key)
        start.wait(30)
        try:
            store.compare_and_set(key, f"{turn} {racer}".encode(), expected=expected)
            won.append(True)
        except PromotionConflictError:
            won.append(False)
        start.wait(30)
    wins.put(won)


def test_a_store_without_compare_and_set_says_so() -> None:
    store = open_store(f"memory://{uuid4().hex}")
    with pytest.raises(ArtifactError, match=r"cannot replace 'memory://.*only file:// and s3:// can; keep"):
        store.compare_and_set("p", b"1", expected=None)
    assert not store.exists("p")


def test_a_server_that_ignores_conditions_promotes_nothing(bucket: Path) -> None:
    store = open_store(f"s3://{bucket.name}/root")
    with pytest.raises(ArtifactError, match=r"ignores conditional writes.*one that knows If-Match") as caught:
        store.compare_and_set("p", b"1", expected=None)
    assert not isinstance(caught.value, PromotionConflictError)
    assert not store.exists("p")
    assert store.list_names("") == []


@pytest.mark.parametrize("key", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_told(bucket: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    store = open_store(f"s3://{bucket.name}")
    store.put_bytes("a", b"x")
    monkeypatch.setenv(key, "wrong")
    for use in (lambda s: s.read_bytes("a"), lambda s: s.reader("a"), lambda s: s.put_bytes("b", b"")):
        with pytest.raises(ArtifactError, match=f"cannot (read|write) 's3://{bucket.name}/.*check AWS_ACCESS_KEY_ID"):
            use(open_store(f"s3://{bucket.name}"))


def test_a_bucket_that_is_not_there_is_told(bucket: Path) -> None:
    store = open_store("s3://no-such-bucket/root")
    with pytest.raises(ArtifactError, match="no-such-bucket/root/a"):
        store.read_bytes("a")
    with pytest.raises(ArtifactError, match=r"cannot write 's3://no-such-bucket/root/a'"):
        store.put_bytes("a", b"")


@pytest.mark.parametrize("offset", [0, 5 * 2**30 - 7])
def test_an_object_of_over_5_gb_is_read_anywhere(bucket: Path, offset: int) -> None:
    with (bucket / "big").open("wb") as file:
        file.truncate(5 * 2**30 + 11)
        file.seek(offset)
        file.write(b"here it is")
    with closing(open_store(f"s3://{bucket.name}").reader("big")) as reader:
        assert reader.size_bytes == 5 * 2**30 + 11
        assert bytes(reader.read_at(offset, 10)) == b"here it is"


@pytest.mark.slow
def test_a_file_of_over_5_gb_is_uploaded_in_parts(bucket: Path, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(5 * 2**30 + 11)
        file.seek(-3, os.SEEK_END)
        file.write(b"end")
    store = open_store(f"s3://{bucket.name}")
    try:
        store.upload(tmp_path / "big", "big")
        with closing(store.reader("big")) as reader:
            assert bytes(reader.read_at(reader.size_bytes - 3, 3)) == b"end"
            assert reader.size_bytes == 5 * 2**30 + 11
    finally:
        store.delete("big")


@pytest.mark.parametrize("root", ["file://./var/a", "file://var/a", "var/a", "./var/a/"])
def test_a_relative_root_is_below_the_current_directory(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(root)
    assert not (tmp_path / "var").exists()
    monkeypatch.chdir("/")
    store.put_bytes("k", b"x")
    assert (tmp_path / "var" / "a" / "k").read_bytes() == b"x"


@pytest.mark.parametrize("root", ["", "nosuchprotocol://x"])
def test_a_root_that_is_no_store_is_refused(root: str) -> None:
    with pytest.raises(ArtifactError):
        open_store(root)


def test_a_root_that_is_a_file_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = open_store(f"file://{tmp_path}/file")
    with pytest.raises(ArtifactError, match=r"cannot write 'file://.*: (Not a directory|File exists)"):
        store.put_bytes("a/b", b"x")
    assert store.list_names("a") == []
