"""What a store is, step by step."""

import pytest

from rag_stack.errors import ArtifactCorruptError, InvalidRequestError, NotFoundError
from rag_stack.index.format import Chunking
from rag_stack.stores.store import MAX_FILES, Attachment, FileError, Outcome, Store, counts

EMPTY = Store(store_id="vs_1", name="mine", created_at=1, last_active_at=1)
DONE = Outcome(usage_bytes=7)
BAD = Outcome(error=FileError(code="invalid_file", message="is empty"))


def ask(*ids: str) -> list[Attachment]:
    return [Attachment(file_id=each, filename=f"{each}.txt", size_bytes=3) for each in ids]


def statuses(store: Store) -> dict[str, str]:
    return {file.file_id: file.status for file in store.shown}


def test_a_file_waits_until_its_generation_is_served() -> None:
    waiting = EMPTY.attached(ask("a", "b"))
    assert (waiting.behind, statuses(waiting)) == (True, {"a": "in_progress", "b": "in_progress"})
    done = waiting.indexed(waiting.generation, "v1", {"a": DONE, "b": BAD})
    assert (done.behind, statuses(done), done.index_version) == (False, {"a": "completed", "b": "failed"}, "v1")
    assert done.file("b").last_error == BAD.error
    assert done.usage_bytes == 7
    assert (done.searchable("a"), done.searchable("b"), done.searchable("c")) == (True, False, False)


def test_what_changed_during_a_build_waits_for_the_next() -> None:
    first = EMPTY.attached(ask("a", "b", "c"))
    during = first.attached(ask("d")).described("a", {"year": 1.0}).detached("b")
    built = during.indexed(first.generation, "v1", {"a": DONE, "b": DONE, "c": DONE})
    assert statuses(built) == {"a": "in_progress", "c": "completed", "d": "in_progress"}
    assert built.behind
    assert not built.searchable("b")
    after = built.indexed(built.generation, "v2", {"a": DONE, "c": DONE, "d": DONE})
    assert (statuses(after), after.behind) == ({"a": "completed", "c": "completed", "d": "completed"}, False)


def test_an_older_build_changes_nothing_any_more() -> None:
    store = EMPTY.attached(ask("a")).attached(ask("b"))
    newest = store.indexed(2, "v2", {"a": DONE, "b": DONE})
    assert newest.indexed(1, "v1", {"a": BAD}) is newest


def test_a_file_that_is_attached_again_is_indexed_again() -> None:
    done = EMPTY.attached(ask("a")).indexed(1, "v1", {"a": DONE})
    again = done.attached([Attachment(file_id="a", filename="a.txt", size_bytes=3, chunking=Chunking(max_tokens=50))])
    assert (statuses(again), len(again.shown)) == ({"a": "in_progress"}, 1)
    assert not again.searchable("a")


def test_a_removed_file_is_remembered_until_its_remover_was_told() -> None:
    done = EMPTY.attached(ask("a", "b")).indexed(1, "v1", {"a": DONE, "b": DONE})
    leaving = done.detached("a")
    assert (statuses(leaving), leaving.detached("a")) == ({"b": "completed"}, leaving)
    assert leaving.forgotten("a") is leaving, "it may still be found"
    with pytest.raises(NotFoundError):
        leaving.file("a")
    gone = leaving.indexed(leaving.generation, "v2", {"b": DONE}).forgotten("a")
    assert set(gone.files) == {"b"}
    with pytest.raises(NotFoundError):
        gone.detached("a")


def test_the_same_attributes_change_nothing() -> None:
    done = EMPTY.attached(ask("a")).indexed(1, "v1", {"a": DONE}).described("a", {"x": True})
    assert done.behind
    assert done.described("a", {"x": True}) is done
    with pytest.raises(NotFoundError):
        done.described("b", {})


def test_batches_count_their_files() -> None:
    store = EMPTY.attached(ask("a", "b", "c"), batch_id="vsfb_1").indexed(1, "v1", {"a": DONE, "b": BAD, "c": DONE})
    store = store.attached(ask("d", "e"), batch_id="vsfb_2").detached("c")
    assert counts(store.of_batch("vsfb_1")) == {
        "in_progress": 0, "completed": 1, "cancelled": 0, "failed": 1, "total": 2,
    }  # fmt: skip
    cancelled = store.cancelled("vsfb_2")
    assert {file.status for file in cancelled.of_batch("vsfb_2")} == {"cancelled"}
    assert cancelled.cancelled("vsfb_2") is cancelled
    late = cancelled.indexed(store.generation, "v2", {"a": DONE, "d": DONE, "e": DONE})
    assert statuses(late)["d"] == "cancelled", "a build that ran has come too late"
    with pytest.raises(NotFoundError):
        store.batch("vsfb_3")


def test_giving_up_fails_what_waits_and_keeps_what_is_served() -> None:
    store = EMPTY.attached(ask("a")).indexed(1, "v1", {"a": DONE}).attached(ask("b"))
    lost = store.attached(ask("c")).given_up(store.generation, "the disk is full")
    assert statuses(lost) == {"a": "completed", "b": "failed", "c": "in_progress"}
    assert lost.file("b").last_error == FileError(code="server_error", message="the disk is full")
    assert lost.index_version == "v1"
    assert lost.given_up(store.generation, "again") is lost


def test_ten_thousand_files_and_no_more() -> None:
    full = EMPTY.attached(ask(*(str(n) for n in range(MAX_FILES))))
    assert len(full.attached(ask("1", "2")).shown) == MAX_FILES
    with pytest.raises(InvalidRequestError, match="at most 10000"):
        full.attached(ask("one too many"))
    room = full.detached("0")
    assert len(room.attached(ask("in its place")).shown) == MAX_FILES


def test_it_is_stored_as_it_is() -> None:
    store = EMPTY.attached(ask("a"), batch_id="vsfb_1").described("a", {"year": 1.5, "b": True, "c": "x"})
    store = store.indexed(2, "v1", {"a": BAD})
    assert Store.from_bytes(store.to_bytes(), where="here") == store
    with pytest.raises(ArtifactCorruptError, match="here is not a vector store's state"):
        Store.from_bytes(b'{"store_id": 5}', where="here")
