"""Real processes that publish, fetch and clean, and die of SIGKILL at a point that a test chooses.

They come from a fork server, which has imported all they need: a round costs what the work costs.
"""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.metrics import MemoryRecorder

TIMEOUT_S = 60.0
_LOOK_S = 0.0005
_PRELOADED = ["tests.killed", "s3fs", "aiobotocore.session", "pyarrow.fs"]
# What a process does to files, as Python's audit hooks tell it: each is a point between two states of the disk.
_ON_PATHS = frozenset({"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.utime"})
_ON_DESCRIPTORS = frozenset({"fcntl.flock", "mmap.__new__"})

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Death:
    """When a process dies: before its n-th step on files, or once the place has grown so much, or after a time.

    With none of them: never.
    """

    step: int | None = None
    grown_bytes: int | None = None
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A store and a node's cache, as a process reaches them.

    `store` is where the store's files are, whoever writes them; `watched` is where this process's own steps count.
    """

    store_url: str
    store: Path
    cache: Path
    watched: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def tiers(self) -> Tiers:
        """For this process, whose environment is already that of the place."""
        return Tiers(Catalog(open_store(self.store_url)), NodeCache(self.cache), MemoryRecorder())

    def size_bytes(self) -> int:
        """What is on the disk of it now; holes are not."""
        found = 0
        for folder, _, names in itertools.chain(os.walk(self.store), os.walk(self.cache)):
            for name in names:
                with suppress(FileNotFoundError):
                    found += (Path(folder) / name).stat().st_blocks * 512
        return found


class Child:
    """A process that has begun its work."""

    def __init__(self, work: Work, place: Place, death: Death) -> None:
        context = fork_server()
        self._told, teller = context.Pipe(duplex=False)
        self._place, self._death = place, death
        self._size_bytes = place.size_bytes()
        self.process: ForkServerProcess = context.Process(target=_live, args=(work, place, death, teller))
        self.process.start()
        teller.close()
        if not self._told.poll(TIMEOUT_S):
            raise TimeoutError("the process did not begin")
        self._told.recv()
        self._began = time.perf_counter()

    def died(self) -> bool:
        """Kill it when its time has come; whether that was before it was done. Raises when it failed by itself."""
        if self._death.grown_bytes is not None:
            while self.process.exitcode is None and self._grown_bytes() < self._death.grown_bytes:
                self.process.join(_LOOK_S)
            self.process.kill()
        elif self._death.after_s is not None:
            self.process.join(self._death.after_s)
            self.process.kill()
        self.process.join(TIMEOUT_S)
        assert self.process.exitcode in (0, -signal.SIGKILL), f"exit code {self.process.exitcode}"
        return self.process.exitcode != 0

    def measured(self) -> tuple[int, float]:
        """Wait until it has ended undisturbed: its steps and its seconds."""
        assert not self.died()
        seconds = time.perf_counter() - self._began
        with closing(self._told):
            return self._told.recv(), seconds

    def _grown_bytes(self) -> int:
        return self._place.size_bytes() - self._size_bytes


def deaths(work: Work, place: Place, *, rounds: int, grows_bytes: int, seed: int) -> Iterator[Death]:
    """Spread over all of the work, which is done once to measure it: by time, by bytes, and by steps if it has some."""
    steps, seconds = Child(work, place, Death()).measured()
    points = random.Random(seed)
    for number in range(rounds):
        share = (number + points.random()) / rounds
        match number % 3:
            case 0:
                yield Death(grown_bytes=int(share * grows_bytes))
            case 1 if steps:
                yield Death(step=1 + int(share * steps))
            case _:
                yield Death(after_s=share * seconds)


def publish(place: Place, directory: Path, version: str, *, promote: bool) -> None:
    """Publish a directory as a version of models/m; promote it where the store can."""
    catalog = Catalog(open_store(place.store_url))
    manifest = catalog.publish(directory, kind="models", name="m", metadata={"round": version}, version=version)
    if promote:
        catalog.promote(manifest.ref)


def fetch(place: Place, manifest: Manifest) -> None:
    """Bring an artifact to the node, and to its disk."""
    tiers = place.tiers()
    tiers.ensure_local(manifest)
    tiers.cache.wait_synced()


def clean(place: Place) -> None:
    """Evict all that no process uses."""
    NodeCache(place.cache).collect(0)


def fetch_then_clean(place: Place, manifest: Manifest) -> None:
    """Both, one after the other; what is fetched is not in use any more when it is cleaned away."""
    tiers = place.tiers()
    tiers.ensure_local(manifest).pin.release()
    tiers.cache.wait_synced()
    clean(place)


def fork_server() -> ForkServerContext:
    """Makes processes that have imported the stores and their clients."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _live(work: Work, place: Place, death: Death, teller: Connection) -> None:
    os.environ.update(place.environment)
    numbers = itertools.count(1)
    sys.addaudithook(partial(_audit, numbers, os.fspath(place.watched), death.step))
    teller.send(None)
    work()
    teller.send(next(numbers) - 1)


def _audit(numbers: "itertools.count[int]", watched: str, last: int | None, event: str, details: Any) -> None:
    if event in _ON_PATHS:
        path = details[0]
        counts = isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(watched)
    else:
        counts = event in _ON_DESCRIPTORS
    if counts and next(numbers) == last:
        os.kill(os.getpid(), signal.SIGKILL)
