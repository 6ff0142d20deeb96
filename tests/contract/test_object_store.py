"""What every object store must do, and what only file:// can."""

import os
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from uuid import uuid4

import pytest

from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.errors import ArtifactError, ArtifactNotFoundError, PromotionConflictError

ODD_NAME = "spaces and ünïcode/#1?%20*[x]&y;~.bin"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    root = f"{tmp_path}/store" if request.param == "file" else uuid4().hex
    return open_store(f"{request.param}://{root}")


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


@pytest.mark.parametrize("size", [0, 1, 9 * 1024 * 1024])
def test_a_file_is_uploaded_under_any_name(store: ObjectStore, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    store.upload(source, f"a/{ODD_NAME}")
    assert store.read_bytes(f"a/{ODD_NAME}") == source.read_bytes()
    assert store.list_names("a") == ["spaces and ünïcode"]


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
    with pytest.raises(ArtifactError, match="promotes on file:// only"):
        store.compare_and_set("p", b"1", expected=None)
    assert not store.exists("p")


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
