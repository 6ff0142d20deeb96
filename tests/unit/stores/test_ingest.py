"""The loop: builds that fail, processes that lag, files that come while a build runs."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import ArtifactError, NotFoundError, StoreLimitError, UnavailableError
from rag_stack.stores.ingest import Built, Ingest, Patience
from rag_stack.stores.register import Register
from rag_stack.stores.store import Attachment, Outcome, Store

PATIENCE = Patience(attempts=3, backoff_s=0.01, max_backoff_s=0.02, settle_s=0.1, rescan_s=60.0)
WAIT_S = 10.0


class Builder:
    """Remembers what it was to build; `fail` raises, `gate` holds it."""

    def __init__(self) -> None:
        self.built: list[list[str]] = []
        self.discarded: list[str] = []
        self.tidied: list[str] = []
        self.outdated: set[str] = set()
        self.fail: Callable[[], None] = lambda: None
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def build(self, store: Store) -> Built:
        files = [file.file_id for file in store.shown if file.status in ("completed", "in_progress")]
        self.built.append(files)
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        self.fail()
        return Built(f"v{len(self.built)}" if files else None, {each: Outcome(usage_bytes=1) for each in files})

    def discard(self, store_id: str) -> None:
        self.discarded.append(store_id)

    def is_current(self, store: Store) -> bool:
        return store.store_id not in self.outdated

    def tidy(self, store_id: str) -> bool:
        self.tidied.append(store_id)
        return False


class Processes:
    """What serves which version."""

    def __init__(self) -> None:
        self.serving: dict[str, str] = {}
        self.lagging: tuple[str, ...] = ()
        self.full = False

    async def add_store(self, store: str) -> None:
        if self.full:
            raise StoreLimitError("full")
        self.serving.setdefault(store, "")

    async def remove_store(self, store: str) -> None:
        self.serving.pop(store, None)

    async def settle(self, store: str, version: str, timeout_s: float) -> tuple[str, ...]:
        if not self.lagging:
            self.serving[store] = version
        return self.lagging


class Running:
    """A register, a builder and processes with the loop between them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.register = Register(open_store(f"file://{root}"))
        self.builder, self.processes = Builder(), Processes()
        self.ingest = Ingest(self.register, self.builder, self.processes, patience=PATIENCE)

    @contextlib.asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.ingest.run())
        try:
            yield
        finally:
            self.builder.gate.set()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def attach(self, store_id: str, *ids: str) -> Store:
        asked = [Attachment(file_id=each, filename="a.txt", size_bytes=1) for each in ids]
        return self.register.change(store_id, lambda now: now.attached(asked))

    async def settled(self, store: Store) -> Store:
        await self.ingest.settled(store.store_id, store.generation, timeout_s=WAIT_S)
        return self.register.get(store.store_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looked at whenever the loop has done something."""
        async with asyncio.timeout(WAIT_S), self.ingest._served:
            await self.ingest._served.wait_for(condition)


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path / "objects")


def statuses(store: Store) -> dict[str, str]:
    return {file.file_id: file.status for file in store.shown}


async def test_files_that_come_while_a_build_runs_go_together_into_the_next(running: Running) -> None:
    store_id = running.register.create().store_id
    async with running.runs():
        running.builder.gate.clear()
        running.ingest.wake(running.attach(store_id, "a").store_id)
        assert await asyncio.to_thread(running.builder.entered.wait, WAIT_S)
        for each in ("b", "c", "d"):
            last = running.attach(store_id, each)
            running.ingest.wake(store_id)
        running.builder.gate.set()
        done = await running.settled(last)
    assert running.builder.built == [["a"], ["a", "b", "c", "d"]]
    assert set(statuses(done).values()) == {"completed"}
    assert running.processes.serving == {store_id: "v2"} == {store_id: done.index_version}


async def test_a_build_that_fails_is_tried_again(running: Running) -> None:
    store_id = running.register.create().store_id
    failures = iter([ArtifactError("the store is down"), OSError("no space left"), None])

    def fail() -> None:
        if (exc := next(failures)) is not None:
            raise exc

    running.builder.fail = fail
    async with running.runs():
        done = await running.settled(running.attach(store_id, "a"))
    assert (statuses(done), len(running.builder.built)) == ({"a": "completed"}, 3)


async def test_after_its_attempts_it_says_so(running: Running) -> None:
    store = running.register.create()

    def fail() -> None:
        raise ArtifactError("the disk is full")

    running.builder.fail = fail
    async with running.runs():
        running.ingest.wake(running.attach(store.store_id, "a").store_id)
        await running.until(lambda: statuses(running.register.get(store.store_id)) == {"a": "failed"})
        error = running.register.get(store.store_id).file("a").last_error
        assert error is not None
        assert (error.code, error.message) == ("server_error", "the disk is full")
        running.builder.fail = lambda: None
        done = await running.settled(running.attach(store.store_id, "b"))
    assert statuses(done) == {"a": "failed", "b": "completed"}


async def test_nothing_is_completed_while_a_process_lags(running: Running) -> None:
    store_id = running.register.create().store_id
    running.processes.lagging = ("replica 7",)
    running.ingest._patience = replace(PATIENCE, attempts=10_000)
    async with running.runs():
        store = running.attach(store_id, "a")
        with pytest.raises(UnavailableError, match="goes on") as caught:
            await running.ingest.settled(store_id, store.generation, timeout_s=0.05)
        assert caught.value.retry_after_s
        running.processes.lagging = ()
        running.ingest.wake(store_id)
        await running.until(lambda: not running.register.get(store_id).behind)
    assert running.builder.built == [["a"]], "it was built, and only had to be served"


async def test_a_process_that_never_serves_it_fails_no_file(running: Running) -> None:
    store_id = running.register.create().store_id
    running.processes.lagging = ("replica 7",)
    async with running.runs():
        store = await running.settled(running.attach(store_id, "a"))
    assert statuses(store) == {"a": "completed"}
    assert running.builder.built == [["a"]]


async def test_what_another_embedder_has_built_is_built_again_by_a_new_process(running: Running) -> None:
    done_id, outdated_id = (running.register.create().store_id for _ in range(2))
    async with running.runs():
        await running.settled(running.attach(done_id, "a"))
        await running.settled(running.attach(outdated_id, "b"))
    anew = Running(running.root)
    anew.builder.outdated.add(outdated_id)
    async with anew.runs():
        await anew.until(lambda: len(anew.builder.built) == 1 and not anew.register.get(outdated_id).behind)
    assert anew.builder.built == [["b"]]
    assert statuses(anew.register.get(outdated_id)) == {"b": "completed"}


async def test_a_new_process_goes_on_where_the_old_one_was(running: Running) -> None:
    done_id, waiting_id, deleted_id = (running.register.create().store_id for _ in range(3))
    async with running.runs():
        await running.settled(running.attach(done_id, "a"))
    running.attach(waiting_id, "b")
    running.register.mark_deleted(deleted_id)
    anew = Running(running.root)
    async with anew.runs():
        await anew.until(lambda: not anew.register.get(waiting_id).behind)
        await anew.until(lambda: deleted_id in anew.builder.discarded)
    assert anew.builder.built == [["b"]], "what was done is not done again"
    assert set(anew.processes.serving) == {done_id, waiting_id}
    assert [store.store_id for store in anew.register.all()].count(deleted_id) == 0


async def test_the_last_file_takes_the_index_with_it(running: Running) -> None:
    store_id = running.register.create().store_id
    async with running.runs():
        await running.settled(running.attach(store_id, "a"))
        done = await running.settled(running.register.change(store_id, lambda now: now.detached("a")))
    assert (done.index_version, running.processes.serving) == (None, {store_id: ""})


async def test_a_store_that_is_deleted_while_it_is_built(running: Running) -> None:
    store_id = running.register.create().store_id
    async with running.runs():
        running.builder.gate.clear()
        running.ingest.wake(running.attach(store_id, "a").store_id)
        assert await asyncio.to_thread(running.builder.entered.wait, WAIT_S)
        await running.ingest.delete(store_id, timeout_s=WAIT_S)
        assert running.builder.discarded == [], "the build may yet promote"
        running.builder.gate.set()
        await running.until(lambda: running.builder.discarded == [store_id])
    assert (running.processes.serving, running.register.all()) == ({}, [])
    with pytest.raises(NotFoundError):
        await running.ingest.delete(store_id, timeout_s=WAIT_S)


async def test_a_store_that_nobody_can_open_is_none(running: Running) -> None:
    running.processes.full = True
    store = running.register.create()
    with pytest.raises(StoreLimitError):
        await running.ingest.open(store.store_id)
    assert running.register.all() == []
