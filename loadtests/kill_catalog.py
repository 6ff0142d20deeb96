"""Processes that publish, promote, roll back, pin and collect in one catalog, and what must hold after their deaths."""

import json
import multiprocessing
import os
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from loadtests.kill_damage import Damage
from loadtests.kill_log import acknowledge, whole_lines
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.fetch import Origin
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.promotion import Promotion
from rag_stack.artifacts.retention import Retention
from rag_stack.errors import (
    ArtifactBusyError,
    ArtifactExistsError,
    ArtifactNotFoundError,
    PromotionConflictError,
    RagStackError,
    RollbackError,
)

_NAME = "docs"
_PROMOTERS = 2
_COLLECTORS = 2
_BEGUN_S = 60.0
_FILE_BYTES = 100_000
# What a promoter may be told while others promote and collect.
_EXPECTED = (ArtifactBusyError, ArtifactExistsError, ArtifactNotFoundError, PromotionConflictError, RollbackError)


@dataclass(frozen=True, slots=True)
class _Task:
    """What a process does, until it is killed. What it was told is done stands in `acknowledged`, line by line."""

    root: str
    scratch: Path
    acknowledged: Path
    seed: int
    label: str


class CatalogVictim:
    """Two promoters and two collectors on `indexes/docs`."""

    name = "catalog"
    longest_s = 1.0

    def __init__(self, root: str, scratch: Path, *, seed: int) -> None:
        self._root = root
        self._scratch = scratch
        self._seed = seed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["loadtests.kill_catalog", "s3fs", "aiobotocore.session", "pyarrow.fs"])
        self._catalog = Catalog(open_store(root))
        self._history: list[Promotion] = []
        self._logs: list[Path] = []

    def start(self, number: int) -> Sequence[BaseProcess]:
        """Processes that are at work."""
        self._logs, begun = [], []
        for place in range(_PROMOTERS + _COLLECTORS):
            label = f"r{number}-{place}"
            log = self._scratch / f"{label}.acknowledged"
            self._logs.append(log)
            told, teller = self._context.Pipe(duplex=False)
            task = _Task(self._root, self._scratch / label, log, self._seed * 1_000_003 + number * 101 + place, label)
            work = _promote if place < _PROMOTERS else _collect
            process = self._context.Process(target=work, args=(task, teller, dict(os.environ)))
            process.start()
            teller.close()
            begun.append((process, told))
        for _, told in begun:
            with closing(told):
                if not told.poll(_BEGUN_S):
                    raise TimeoutError("a process did not begin")
                told.recv()
        return [process for process, _ in begun]

    def check(self, number: int) -> Damage:
        """Look at all that is there, then let one of each kind finish, and look again."""
        lost, inconsistent = [], []
        acknowledged = [json.loads(line) for log in self._logs for line in whole_lines(log)]
        failures = [each["failed"] for each in acknowledged if "failed" in each]
        inconsistent += [f"a process failed: {failure}" for failure in failures]
        left, before = self._left(), len(self._history)
        try:
            lost += self._lost(acknowledged)
            inconsistent += self._inconsistent()
            self._finish(number)
            lost += self._lost(acknowledged)
            inconsistent += self._inconsistent()
            inconsistent += self._left_behind()
        except RagStackError as exc:
            inconsistent.append(f"{type(exc).__name__}: {exc.message}")
        return Damage(
            tuple(dict.fromkeys(lost)),
            tuple(dict.fromkeys(inconsistent)),
            {
                "acknowledged": len(acknowledged),
                "promotions": len({each["number"] for each in acknowledged if "number" in each}),
                "deletions": sum(len(each.get("deleted", ())) for each in acknowledged),
                "history_grown": len(self._history) - before,
                **left,
            },
        )

    def _lost(self, acknowledged: list[dict[str, Any]]) -> list[str]:
        """Acknowledged promotions must be in the history, pinned versions must be there."""
        history = self._catalog.history("indexes", _NAME)
        lost = []
        if history[: len(self._history)] != self._history:
            lost.append(f"the history of {len(self._history)} promotions does not go on but is another")
        self._history = history
        known = {(each.number, each.version) for each in history}
        moved = {(each["number"], each["version"]) for each in acknowledged if "number" in each}
        lost += [f"promotion {n} of {v} was acknowledged and is not in the history" for n, v in sorted(moved - known)]
        # A later pin of the same release replaces it.
        pins = {each["pinned_by"]: each["version"] for each in acknowledged if "pinned_by" in each}
        held = {pin.owner: pin.refs for pin in Retention(self._catalog).pins()}
        there = set(self._catalog.versions("indexes", _NAME))
        for release, version in pins.items():
            if any(f"indexes/{_NAME}/{version}" == ref for ref in held.get(release, ())) and version not in there:
                lost.append(f"{version} was pinned by {release} and is deleted")
        return lost

    def _inconsistent(self) -> list[str]:
        """Every version that is listed is whole, and so is the promoted one; the history has no gap."""
        found = []
        versions = self._catalog.versions("indexes", _NAME)
        for version in versions:
            try:
                manifest = self._catalog.manifest(ArtifactRef("indexes", _NAME, version))
                with closing(Origin(self._catalog.store, manifest)) as origin:
                    for chunk in manifest.chunks():
                        chunk.verify(origin.read(chunk))
            except RagStackError as exc:
                found.append(f"{version} is listed and not whole: {exc.message}")
        pointer = self._catalog.promoted("indexes", _NAME)
        if pointer is not None and pointer.version not in versions:
            found.append(f"{pointer.version} is promoted and not there")
        numbers = [each.number for each in self._history]
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"the history has a gap: {numbers}")
        return found

    def _finish(self, number: int) -> None:
        """The next run, which nobody kills."""
        source = _written(self._scratch / f"next-{number}", f"next {number}")
        manifest = self._catalog.publish(source, kind="indexes", name=_NAME, metadata={}, version=f"next-{number}")
        self._catalog.promote(manifest.ref, reason=f"after the kills of round {number}")
        retention = Retention(self._catalog, grace_s=0)
        for pin in retention.pins():
            if not pin.owner.startswith(f"r{number}-"):
                retention.unpin(pin.owner)
        retention.collect("indexes", _NAME, older_than_s=0)

    def _left(self) -> dict[str, int]:
        """What the kills left: how near to the middle of things they came."""
        published = set(self._catalog.versions("indexes", _NAME))
        entries = self._catalog.store.entries(f"indexes/{_NAME}")
        names = {entry.key.split("/")[2] for entry in entries if entry.key.count("/") > 2}
        halves = {name for name in names if not name.startswith(".")} - published
        condemned = self._catalog.state("indexes", _NAME)[0].condemned
        return {"left_halves": len(halves), "left_marks": len(condemned)}

    def _left_behind(self) -> list[str]:
        """With locks, the next run clears all away at once; without, it waits an hour for marks, a day for files."""
        if not self._catalog.store.has_locks:
            return []
        kept = Retention(self._catalog, grace_s=0).collect("indexes", _NAME, older_than_s=0, dry_run=True).verdicts
        halves = [f"the next run left {each.ref}: {each.reasons}" for each in kept if not each.published]
        marks = self._catalog.state("indexes", _NAME)[0].condemned
        return [*halves, *(f"the next run left {version} marked as being deleted" for version in marks)]


def _promote(task: _Task, teller: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    catalog, draw = Catalog(open_store(task.root)), random.Random(task.seed)
    retention = Retention(catalog)
    teller.send(None)
    number = 0
    while _is_wanted():
        number += 1
        try:
            match draw.choices(["publish", "again", "rollback", "pin"], weights=[6, 2, 2, 2])[0]:
                case "publish":
                    version = f"{task.label}-{number}"
                    source = _written(task.scratch, version)
                    ref = catalog.publish(source, kind="indexes", name=_NAME, metadata={}, version=version).ref
                    acknowledge(task.acknowledged, published=version)
                    pointer = catalog.promote(ref, by=task.label, reason=version)
                    acknowledge(task.acknowledged, number=pointer.number, version=pointer.version)
                case "again":
                    ref = ArtifactRef("indexes", _NAME, draw.choice(catalog.versions("indexes", _NAME) or ["none"]))
                    pointer = catalog.promote(ref, by=task.label)
                    acknowledge(task.acknowledged, number=pointer.number, version=pointer.version)
                case "rollback":
                    pointer = catalog.rollback("indexes", _NAME, by=task.label)
                    acknowledge(task.acknowledged, number=pointer.number, version=pointer.version)
                case _:
                    version = draw.choice(catalog.versions("indexes", _NAME) or ["none"])
                    retention.pin(task.label, [ArtifactRef("indexes", _NAME, version)])
                    acknowledge(task.acknowledged, pinned_by=task.label, version=version)
        except _EXPECTED:
            continue
        except BaseException as exc:
            acknowledge(task.acknowledged, failed=f"{type(exc).__name__}: {exc}")
            raise


def _collect(task: _Task, teller: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    # So hasty that it deletes what was published a moment ago: nothing but the marks stands between it and a promotion.
    retention = Retention(Catalog(open_store(task.root)), grace_s=0)
    draw = random.Random(task.seed)
    teller.send(None)
    while _is_wanted():
        try:
            collected = retention.collect("indexes", _NAME, keep=draw.randrange(3), older_than_s=0)
        except BaseException as exc:
            acknowledge(task.acknowledged, failed=f"{type(exc).__name__}: {exc}")
            raise
        if collected.deleted:
            acknowledge(task.acknowledged, deleted=[each.ref.version for each in collected.deleted])


def _is_wanted() -> bool:
    """Whether somebody is left who will kill this process."""
    parent = multiprocessing.parent_process()
    return parent is not None and parent.is_alive()


def _written(directory: Path, text: str) -> Path:
    """A source of three files, of which one takes a moment to upload."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "index.faiss").write_bytes(random.Random(text).randbytes(_FILE_BYTES))
    (directory / "passages.arrow").write_text(text)
    (directory / "documents.arrow").write_text(f"documents of {text}")
    return directory
