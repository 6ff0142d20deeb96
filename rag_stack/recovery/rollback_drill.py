"""The rollback drill: how long it takes until a search answers from the version before.

    measured             how
    promote_seconds      from the command until every process answers from the new version, which is fetched
    rollback_seconds     from the command until every process answers from the old version, which its node still has
    forward_seconds      and back to the new one
    searches, failed     one search after another in every process meanwhile
    mixed                searches that were answered by another version than the old and the new one

By default on a copy: a fresh root with the two versions promoted last, real followers and a real coordinator in this
process, with the interval at which a cluster's coordinator looks. With a server the live index, or the live release, is
rolled back and forward again.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ArtifactNotFoundError, RagStackError, RollbackError, UnavailableError
from rag_stack.index.format import IndexMetadata
from rag_stack.metrics import MemoryRecorder
from rag_stack.recovery.restore import copy_artifact
from rag_stack.retrieval.preparation import Preparation
from rag_stack.retrieval.rollout import Coordinator, FollowedStore, Orders, Report, Target
from rag_stack.retrieval.shelf import Shelf
from rag_stack.serving.following.coordinator import Rollouts
from rag_stack.serving.following.follow import Follower

PROCESSES: Final = 2
# As a cluster's coordinator looks at an object store that is not `file://` (`serving.control`).
POLL_S: Final = 2.0
_LOOK_S: Final = 0.02
_PAUSE_S: Final = 0.005
_SEED: Final = 7


@dataclass(frozen=True, slots=True)
class RollbackDrill:
    """What a drill has measured. `live` is the server, where there was one."""

    name: str
    old: str
    new: str
    promote_seconds: float | None
    rollback_seconds: float
    forward_seconds: float
    searches: int
    failed: int
    mixed: int
    live: str = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not hold."""
        found = []
        if self.failed:
            found.append(f"{self.failed} of {self.searches} searches failed")
        if self.mixed:
            found.append(f"{self.mixed} of {self.searches} searches were answered by neither version")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {**asdict(self), "problems": list(self.problems)}

    def figure(self) -> str:
        """The drill in one line."""
        where = f"live on {self.live}" if self.live else f"on a copy, {PROCESSES} processes"
        first = "" if self.promote_seconds is None else f"first promotion {self.promote_seconds:.2f} s, "
        return (
            f"rollback of {self.name} ({where}): {self.new} -> {self.old} in {self.rollback_seconds:.2f} s, forward "
            f"again in {self.forward_seconds:.2f} s, {first}{self.searches} searches, {self.failed} failed"
        )


def two_newest(catalog: Catalog, name: str) -> tuple[Manifest, Manifest]:
    """The version that a rollback goes back to, and the promoted one. Raises RollbackError when there are no two."""
    pointer = catalog.promoted("indexes", name)
    if pointer is None or pointer.previous is None:
        had = "nothing" if pointer is None else f"{pointer.version!r} alone"
        raise RollbackError(f"indexes/{name} has had {had} promoted, and a rollback needs two versions: build another")
    try:
        old, new = (
            catalog.manifest(ArtifactRef("indexes", name, version)) for version in (pointer.previous, pointer.version)
        )
    except ArtifactNotFoundError as exc:
        raise RollbackError(f"{exc.message}: a rollback would go there, and cannot") from exc
    if IndexMetadata.of(old).embedder != IndexMetadata.of(new).embedder:
        raise RollbackError(
            f"{old.version!r} and {new.version!r} of {name!r} were made with different embedders, so no running server "
            "goes from one to the other: roll back the release that names them"
        )
    return old, new


def drill_rollback(
    catalog: Catalog, name: str, scratch: Path, *, limit_s: float, poll_s: float = POLL_S
) -> RollbackDrill:
    """Roll a copy of an index back and forward, below an empty directory. Blocking.

    Raises RollbackError, what opening a version raises, and UnavailableError when it takes longer than `limit_s`.
    """
    old, new = two_newest(catalog, name)
    root = Catalog(open_store(f"file://{scratch / 'root'}"))
    for manifest in (old, new):
        copy_artifact(catalog, manifest, root.store)
    tiers = Tiers(root, NodeCache(scratch / "cache"), MemoryRecorder())
    return asyncio.run(_measured(tiers, old, new, limit_s=limit_s, poll_s=poll_s))


async def _measured(tiers: Tiers, old: Manifest, new: Manifest, *, limit_s: float, poll_s: float) -> RollbackDrill:
    catalog, name = tiers.catalog, new.name
    catalog.promote(old.ref, reason="drill rollback")
    store = FollowedStore(name, name, of_release=True)
    async with _followed(tiers, store, old, limit_s=limit_s, poll_s=poll_s) as searchers:

        async def until(version: str, command: Callable[[], object]) -> float:
            began_s = time.perf_counter()
            await asyncio.to_thread(command)
            return await _answered(searchers, version, since_s=began_s, limit_s=limit_s)

        await _answered(searchers, old.version, since_s=0.0, limit_s=limit_s)
        promote_s = await until(new.version, partial(catalog.promote, new.ref))
        back_s = await until(old.version, partial(catalog.rollback, "indexes", name))
        forward_s = await until(new.version, partial(catalog.promote, new.ref))
    answers = [version for each in searchers for _, version in each.answers]
    return RollbackDrill(
        name=f"indexes/{name}",
        old=old.version,
        new=new.version,
        promote_seconds=promote_s,
        rollback_seconds=back_s,
        forward_seconds=forward_s,
        searches=len(answers) + sum(each.failed for each in searchers),
        failed=sum(each.failed for each in searchers),
        mixed=sum(version not in (old.version, new.version) for version in answers),
    )


@dataclass(slots=True)
class Searcher:
    """Searches one shelf without a pause worth mention, in a thread, and remembers which version answered when."""

    shelf: Shelf
    store: str
    dimension: int
    answers: list[tuple[float, str]] = field(default_factory=list)
    failed: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Search until stopped."""
        vector = np.random.default_rng(_SEED).standard_normal((1, self.dimension)).astype(np.float32)
        vector /= np.linalg.norm(vector)
        while not self.stopped.wait(_PAUSE_S):
            try:
                with self.shelf.lease(self.store) as opened:
                    if opened.index is None:
                        continue  # the first version is being opened
                    opened.index.search(vector, 1)
                    self.answers.append((time.perf_counter(), opened.version))
            except RagStackError:
                self.failed += 1

    def first(self, version: str, *, since_s: float) -> float | None:
        """When it was first answered by a version after a moment; None: not yet."""
        return next((at for at, found in reversed(self._since(since_s)) if found == version), None)

    def _since(self, since_s: float) -> Sequence[tuple[float, str]]:
        recent = []
        for each in reversed(self.answers):
            if each[0] <= since_s:
                break
            recent.append(each)
        return recent


async def _answered(searchers: Sequence[Searcher], version: str, *, since_s: float, limit_s: float) -> float:
    """Seconds until the last process answered from a version. Raises UnavailableError after `limit_s`."""
    until_s = time.perf_counter() + limit_s
    while True:
        found = [each.first(version, since_s=since_s) for each in searchers]
        moments = [at for at in found if at is not None]
        if len(moments) == len(found):
            return max(moments) - since_s
        if time.perf_counter() > until_s:
            raise UnavailableError(
                f"{len(moments)} of {len(found)} processes answer from {version!r} after {limit_s:g} s; give the drill "
                "more with --limit-s, or look why the version does not open: `rag-stack index verify`"
            )
        await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def _followed(
    tiers: Tiers, store: FollowedStore, first: Manifest, *, limit_s: float, poll_s: float
) -> AsyncIterator[Sequence[Searcher]]:
    """A coordinator, and processes that follow it and are searched, until the block ends."""
    loop, metadata = asyncio.get_running_loop(), IndexMetadata.of(first)
    coordinator = Coordinator([store], now_s=loop.time(), limit_s=limit_s, max_stores=1, grace_s=0.0)
    rollouts = Rollouts(coordinator, tiers.catalog, poll_s=poll_s, hold=_hold_nothing, clock=loop.time)

    async def sync(participant: str, report: Report, known: Orders | None) -> Orders:
        return await rollouts.sync(participant, report, known)

    async with AsyncExitStack() as stack:
        await _run(stack, rollouts.run())
        searchers = []
        for number in range(PROCESSES):
            recorder = MemoryRecorder()
            shelf = Shelf(Preparation(tiers, recorder, embedder_digest=metadata.embedder.digest), max_stores=1)
            stack.callback(shelf.drop, store.name)
            follower = Follower(
                f"drill-{number}", shelf, tiers, serving={store: Target()}, sync=sync, recorder=recorder
            )
            await follower.join(timeout_s=limit_s)
            await _run(stack, follower.run())
            searcher = Searcher(shelf, store.name, metadata.dimension)
            thread = threading.Thread(target=searcher.run, name=f"drill-search-{number}")
            thread.start()
            stack.callback(thread.join)
            stack.callback(searcher.stopped.set)
            searchers.append(searcher)
        yield searchers


async def _run(stack: AsyncExitStack, work: Any) -> None:  # noqa: ANN401 - a coroutine of whatever result
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


async def _hold_nothing(_: frozenset[ArtifactRef]) -> None:
    """Nobody collects the copy."""
