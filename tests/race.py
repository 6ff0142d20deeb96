"""Processes that all do the same to one store at the same time."""

import os
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from queue import Queue
from typing import Any

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.errors import PromotionConflictError
from tests.killed import fork_server

WRITERS = 8
TIMEOUT_S = 120.0

Look = Callable[[ObjectStore], Any]
# Gets the store, the writer's number, the round's, and what `Look` saw before the race.
Act = Callable[[ObjectStore, int, int, Any], Any]


def race(url: str, act: Act, *, look: Look = Catalog, rounds: int) -> list[list[Any]]:
    """What each writer's act returned, by rounds. In each all look, then all act."""
    context = fork_server()
    barrier, results = context.Barrier(WRITERS), context.Queue()
    processes = [
        context.Process(target=_take_part, args=(url, look, act, writer, rounds, barrier, results, dict(os.environ)))
        for writer in range(WRITERS)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=TIMEOUT_S) for _ in processes)
        assert None not in found.values(), "a writer failed; its traceback is in what was captured"
    finally:
        for process in processes:
            process.join(TIMEOUT_S)
    return [list(each) for each in zip(*(found[writer] for writer in range(WRITERS)), strict=True)]


def _take_part(
    url: str,
    look: Look,
    act: Act,
    writer: int,
    rounds: int,
    barrier: Barrier,
    results: "Queue[Any]",
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    store, found = open_store(url), []
    try:
        for number in range(rounds):
            seen = look(store)
            barrier.wait(TIMEOUT_S)
            found.append(act(store, writer, number, seen))
            barrier.wait(TIMEOUT_S)
    except BaseException:
        # The others shall not wait for one that has failed.
        barrier.abort()
        results.put((writer, None))
        raise
    results.put((writer, found))


def read_pointer(store: ObjectStore) -> bytes | None:
    """What is there to be replaced."""
    return store.read_bytes("pointer") if store.exists("pointer") else None


def replace_pointer(store: ObjectStore, writer: int, number: int, seen: bytes | None) -> bool:
    """Whether this writer was the one."""
    try:
        store.compare_and_set("pointer", f"round {number}, writer {writer}".encode(), expected=seen)
    except PromotionConflictError:
        return False
    return True


def create(store: ObjectStore, writer: int, number: int, _: object) -> bool:
    """Whether this writer was the one."""
    return store.create(f"claims/{number}", f"{writer}".encode())


def promoted_version(store: ObjectStore) -> str | None:
    """What is promoted as models/m."""
    pointer = Catalog(store).promoted("models", "m")
    return pointer.version if pointer else None


def promote(store: ObjectStore, writer: int, number: int, seen: str | None) -> str | None:
    """None for the one that won, to the others what they are told."""
    try:
        Catalog(store).promote(ArtifactRef("models", "m", f"v{number}-{writer}"), expected_version=seen)
    except PromotionConflictError as exc:
        return exc.message
    return None
