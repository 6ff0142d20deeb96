"""Stores on a real object store: read, changed, lost races."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.errors import (
    ArtifactCorruptError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PromotionConflictError,
)
from rag_stack.stores import register as register_module
from rag_stack.stores.files import Files
from rag_stack.stores.register import Register
from rag_stack.stores.store import Attachment, Store


@pytest.fixture
def object_store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/objects")


def ask(file_id: str) -> list[Attachment]:
    return [Attachment(file_id=file_id, filename="a.txt", size_bytes=3)]


def test_another_process_sees_what_was_acknowledged(object_store: ObjectStore) -> None:
    mine = Register(object_store)
    store = mine.create(name="one", metadata={"k": "v"}, attachments=ask("file-1"))
    mine.change(store.store_id, lambda now: now.attached(ask("file-2")))
    found = Register(object_store).get(store.store_id)
    assert ([file.file_id for file in found.shown], dict(found.metadata)) == (["file-1", "file-2"], {"k": "v"})
    assert found == mine.known(store.store_id)


def test_two_processes_that_change_one_store_lose_nothing(object_store: ObjectStore) -> None:
    store_id = Register(object_store).create().store_id
    registers = [Register(object_store) for _ in range(4)]

    def attach(number: int) -> None:
        for each in range(10):
            while True:
                try:
                    registers[number].change(store_id, lambda now, name=f"{number}-{each}": now.attached(ask(name)))
                    break
                except ConflictError:
                    continue  # what a client does with a 409

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attach, range(4)))
    assert len(Register(object_store).get(store_id).shown) == 40


class Hurried(ObjectStore):
    """Another writer is always faster."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.url = inner.url
        self.attempts = 0

    def read_bytes(self, key: str) -> bytes:
        return self._inner.read_bytes(key)

    def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
        self.attempts += 1
        raise PromotionConflictError("moved")


def test_lost_races_end(object_store: ObjectStore) -> None:
    store_id = Register(object_store).create().store_id
    hurried = Hurried(object_store)
    with pytest.raises(ConflictError) as caught:
        Register(hurried).change(store_id, lambda now: now.renamed(name="x"))
    assert (caught.value.status, hurried.attempts) == (409, 8)


def test_a_step_that_changes_nothing_is_checked_against_the_store(object_store: ObjectStore) -> None:
    stale, other = Register(object_store), Register(object_store)
    store = stale.create(attachments=ask("file-1"))
    other.change(store.store_id, lambda now: now.attached(ask("file-2")))
    seen = stale.change(store.store_id, lambda now: now)
    assert {file.file_id for file in seen.shown} == {"file-1", "file-2"}


def test_a_deleted_store_is_not_found_and_then_forgotten(object_store: ObjectStore) -> None:
    register = Register(object_store)
    store_id = register.create().store_id
    register.mark_deleted(store_id)
    assert register.mark_deleted(store_id).deleted
    for look in (register.get, lambda each: register.change(each, lambda now: now)):
        with pytest.raises(NotFoundError):
            look(store_id)
    assert register.known(store_id) is None
    assert [store.store_id for store in register.all()] == [store_id]
    register.forget(store_id)
    assert register.all() == []
    with pytest.raises(NotFoundError):
        register.mark_deleted(store_id)


@pytest.mark.parametrize("store_id", ["nope", "../files", ".", "", "a/b", "a\0b", "x" * 500])
def test_ids_that_are_none(object_store: ObjectStore, store_id: str) -> None:
    with pytest.raises(NotFoundError):
        Register(object_store).get(store_id)
    with pytest.raises(NotFoundError):
        Files(object_store).get(store_id)


def test_there_is_an_end_to_stores(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register_module, "MAX_STORES", 2)
    register = Register(object_store)
    made = [register.create(), register.create()]
    with pytest.raises(InvalidRequestError, match="2 stores"):
        register.create()
    register.mark_deleted(made[0].store_id)
    register.forget(made[0].store_id)
    assert isinstance(register.create(), Store)


def test_files(object_store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"some words")
    files = Files(object_store)
    first = files.add(path, filename="a.txt", purpose="assistants")
    second = files.add(path, filename="b.txt", purpose="batch")
    again = Files(object_store)
    assert again.get(first.file_id) == first
    assert again.content(first.file_id) == b"some words"
    assert {file.file_id for file in again.all()} == {first.file_id, second.file_id}
    assert again.all(purpose="batch") == [second]
    assert again.several([second.file_id, first.file_id]) == [second, first]
    again.delete(first.file_id)
    for look in (again.get, again.content, again.delete):
        with pytest.raises(NotFoundError):
            look(first.file_id)
    assert again.all() == [second]


def test_a_file_without_its_card_does_not_exist(object_store: ObjectStore) -> None:
    """Its upload was killed before it was acknowledged."""
    object_store.put_bytes("files/file-killed/content", b"x")
    assert Files(object_store).all() == []


def test_what_is_damaged_does_not_hide_the_others(
    object_store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register, files = Register(object_store), Files(object_store)
    stores = [register.create(), register.create()]
    (tmp_path / "upload").write_bytes(b"some words")
    file = files.add(tmp_path / "upload", filename="a.txt", purpose="assistants")
    object_store.put_bytes(f"stores/{stores[0].store_id}/store.json", b"{")
    object_store.put_bytes("files/file-damaged/file.json", b"{}")
    assert Register(object_store).all() == [stores[1]]
    assert Files(object_store).all() == [file]
    assert f"{stores[0].store_id}/store.json is not" in caplog.text
    assert "file-damaged/file.json is not" in caplog.text
    with pytest.raises(ArtifactCorruptError):
        Register(object_store).get(stores[0].store_id)
