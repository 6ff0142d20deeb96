"""The process that owns the stores made over HTTP, killed while it takes uploads and builds; what must outlive it."""

import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from loadtests.kill_damage import Damage
from loadtests.kill_log import acknowledge, whole_lines
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ConflictError, NotFoundError, RagStackError
from rag_stack.index.format import Chunking
from rag_stack.jobs.store_build import StoreBuild
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.local_rollout import LocalRollout
from rag_stack.retrieval.preparation import Preparation
from rag_stack.retrieval.shelf import Shelf
from rag_stack.stores.files import Files
from rag_stack.stores.ingest import Ingest, Patience
from rag_stack.stores.register import Register
from rag_stack.stores.store import Attachment

_BEGUN_S = 60.0
_SETTLE_S = 120.0
_UPLOADERS = 2
# A store that grew with every round would make the last rounds builds of thousands of files.
_ROUNDS_A_STORE = 10
_PATIENCE = Patience(attempts=1000, backoff_s=0.01, max_backoff_s=0.1)
_WORD = re.compile(r"\w+")


class UploadsVictim:
    """One process that owns the stores, with uploads, removals and its loop of builds, on one store after another."""

    name = "uploads"
    longest_s = 2.0

    def __init__(self, root: str, scratch: Path, *, seed: int) -> None:
        self._root = root
        self._scratch = scratch
        self._seed = seed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["loadtests.kill_uploads", "s3fs", "aiobotocore.session", "pyarrow.fs"])
        self._store = ""
        self._known: dict[str, _Told] = {}
        self._log = scratch / "none"

    def start(self, number: int) -> Sequence[BaseProcess]:
        """The owner, at work."""
        if number % _ROUNDS_A_STORE == 0:
            self._store = Register(open_store(self._root)).create(name=f"round {number}").store_id
            self._known = {}
        self._log = self._scratch / f"uploads-{number}.acknowledged"
        told, teller = self._context.Pipe(duplex=False)
        work = (self._root, self._store, self._scratch, self._log, self._seed * 1_000_003 + number)
        process = self._context.Process(target=_own, args=(*work, teller, dict(os.environ)))
        process.start()
        teller.close()
        with closing(told):
            if not told.poll(_BEGUN_S):
                raise TimeoutError("the process did not begin")
            told.recv()
        return [process]

    def check(self, number: int) -> Damage:  # noqa: ARG002 - Victim's signature
        """Have the next owner finish, and look for all that was acknowledged."""
        lines = [json.loads(line) for line in whole_lines(self._log)]
        inconsistent = [f"the process failed: {line['failed']}" for line in lines if "failed" in line]
        for line in lines:
            if "file" in line:
                told = self._known.get(file := line.pop("file"), _Told())
                self._known[file] = replace(told, **line)
        before = Register(open_store(self._root)).get(self._store)
        waited = sum(file.status == "in_progress" for file in before.shown)
        lost: list[str] = []
        try:
            found = asyncio.run(self._finished())
            lost += self._lost(found)
            inconsistent += self._inconsistent(found)
        except (RagStackError, TimeoutError) as exc:
            inconsistent.append(f"the next owner does not finish: {type(exc).__name__}: {exc}")
        figures = {"acknowledged": len(lines), "files": len(before.shown), "left_waiting": waited}
        return Damage(tuple(lost), tuple(inconsistent), figures)

    async def _finished(self) -> set[str]:
        """The files that a search can find once a new owner has gone on."""
        owner = _Owner(self._root, self._scratch)
        running = asyncio.create_task(owner.ingest.run())
        try:
            store = owner.register.get(self._store)
            await owner.ingest.settled(self._store, store.generation, timeout_s=_SETTLE_S)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        # Anew: what was done already the loop opens without anybody waiting for it.
        reader = _Owner(self._root, self._scratch)
        await reader.rollout.add_store(self._store)
        with reader.shelf.lease(self._store) as opened:
            if opened.index is None:
                return set()
            rows = range(len(opened.index.passages))
            return {opened.index.passages.get(row).document_id for row in rows}

    def _lost(self, found: set[str]) -> list[str]:
        files, store = Files(open_store(self._root)), Register(open_store(self._root)).get(self._store)
        lost = []
        for file_id, told in self._known.items():
            try:
                if told.uploaded and hashlib.sha256(files.content(file_id)).hexdigest() != told.uploaded:
                    lost.append(f"{file_id} was uploaded and holds something else")
            except NotFoundError:
                lost.append(f"{file_id} was uploaded and is not there")
            if told.removed:
                if file_id in found:
                    lost.append(f"the removal of {file_id} was acknowledged, and a search finds it")
            elif told.attached and not told.removing:
                held = store.files.get(file_id)
                if held is None or held.status != "completed" or file_id not in found:
                    lost.append(f"{file_id} was attached and is {held.status if held else 'not there'}")
        return lost

    def _inconsistent(self, found: set[str]) -> list[str]:
        store = Register(open_store(self._root)).get(self._store)
        completed = {file.file_id for file in store.shown if file.status == "completed"}
        if completed != found:
            return [f"{len(completed)} files say completed, a search can find {len(found)}"]
        pointer = Catalog(open_store(self._root)).promoted("indexes", self._store)
        if (pointer.version if pointer else None) != store.index_version:
            return [f"{store.index_version} is said to serve, {pointer} is promoted"]
        return []


@dataclass(frozen=True, slots=True)
class _Told:
    """What was acknowledged of one file. A removal that was begun may or may not have been done."""

    uploaded: str = ""
    attached: bool = False
    removing: bool = False
    removed: bool = False


class _Owner:
    """What owns the stores, in this process."""

    def __init__(self, root: str, scratch: Path) -> None:
        recorder, model = MemoryRecorder(), _Words()
        object_store = open_store(root)
        tiers = Tiers(Catalog(object_store), NodeCache(scratch / "uploads-cache"), recorder)
        self.shelf = Shelf(Preparation(tiers, recorder, embedder_digest=model.digest), max_stores=1_000)
        self.register, self.files = Register(object_store), Files(object_store)
        build = StoreBuild(self.files, tiers, model, chunking=Chunking())
        self.rollout = LocalRollout(self.shelf, tiers.catalog)
        self.ingest = Ingest(self.register, build, self.rollout, patience=_PATIENCE)


class _Words:
    """An embedder that needs no weights: texts that share words are near."""

    name = "words"
    dimension = 64
    max_tokens = 256
    digest = "sha256:" + hashlib.sha256(b"loadtests.kill_uploads").hexdigest()

    def __init__(self) -> None:
        self.tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = Split(Regex(r"\s+"), "removed")

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> npt.NDArray[np.float32]:  # noqa: ARG002
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()) or [""]:
                vectors[row, hashlib.blake2b(word.encode(), digest_size=1).digest()[0] % self.dimension] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _own(
    root: str, store: str, scratch: Path, log: Path, seed: int, teller: Connection, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    owner = _Owner(root, scratch)
    teller.send(None)
    try:
        asyncio.run(_work(owner, store, scratch, log, seed))
    except BaseException as exc:
        acknowledge(log, failed=f"{type(exc).__name__}: {exc}")
        raise


async def _work(owner: _Owner, store: str, scratch: Path, log: Path, seed: int) -> None:
    uploads = [_upload(owner, store, scratch, log, seed * 10 + number) for number in range(_UPLOADERS)]
    await asyncio.gather(owner.ingest.run(), *uploads)


async def _upload(owner: _Owner, store: str, scratch: Path, log: Path, seed: int) -> None:
    """As the handlers do it: what they would answer is what is written down."""
    draw, path = random.Random(seed), scratch / f"upload-{seed}"
    attached: list[str] = []
    for number in range(1_000_000):
        text = f"file {seed} {number} " + " ".join(str(draw.randrange(1000)) for _ in range(draw.randrange(5, 200)))
        path.write_text(text)
        file = await asyncio.to_thread(owner.files.add, path, filename=f"{number}.txt", purpose="assistants")
        acknowledge(log, file=file.file_id, uploaded=hashlib.sha256(text.encode()).hexdigest())
        asked = [Attachment(file_id=file.file_id, filename=file.filename, size_bytes=file.size_bytes)]
        try:
            changed = await asyncio.to_thread(
                owner.register.change, store, lambda now, asked=asked: now.attached(asked)
            )
        except ConflictError:
            continue
        acknowledge(log, file=file.file_id, attached=True)
        attached.append(file.file_id)
        owner.ingest.wake(store)
        if draw.random() < 0.3:
            await owner.ingest.settled(store, changed.generation, timeout_s=_SETTLE_S)
        if draw.random() < 0.2:
            gone = attached.pop(draw.randrange(len(attached)))
            acknowledge(log, file=gone, removing=True)
            left = await asyncio.to_thread(owner.register.change, store, lambda now, gone=gone: now.detached(gone))
            await owner.ingest.settled(store, left.files[gone].generation, timeout_s=_SETTLE_S)
            acknowledge(log, file=gone, removed=True)
