"""From a published index version to one that may serve: room, files, mapping, pages, answers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.memory import available_bytes
from rag_stack.artifacts.pin import Pin
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import IndexTooLargeError
from rag_stack.index.format import INDEX_FILE, LEXICAL_MAPPED_FILES, PASSAGES_FILE
from rag_stack.index.gpu_memory import GpuMemory
from rag_stack.index.reader import IndexVersion, copied_bytes
from rag_stack.metrics import SWAP_SECONDS, Recorder

# The rest is for what requests take meanwhile.
_MEMORY_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Ready:
    """An index version that may serve, and the pin that keeps its files on this node."""

    index: IndexVersion
    pin: Pin


class Preparation:
    """Prepares index versions for one embedder, all in the thread that asks.

    With `both_resident` a version is refused unless all of it and of the one it replaces fit in memory; without it, as
    much is prefaulted as there is room for, and only what a process has to copy must fit. `fetch_beside` has another
    process bring a version's files to this node; what it does not bring is fetched here. With a `gpu` a version is
    copied there too, beside the one that serves.
    """

    def __init__(
        self,
        tiers: Tiers,
        recorder: Recorder,
        *,
        embedder_digest: str,
        both_resident: bool = False,
        fetch_beside: Callable[[Manifest], None] = lambda _: None,
        gpu: GpuMemory | None = None,
    ) -> None:
        self.tiers = tiers
        self._fetch_beside = fetch_beside
        self._recorder = recorder
        self._embedder_digest = embedder_digest
        self._both_resident = both_resident
        self._gpu = gpu

    def prepare(self, manifest: Manifest, *, beside: IndexVersion | None = None) -> Ready:
        """Bring a version here, open it, read it into memory and try it out, `beside` the one that serves. Blocking.

        Raises IndexTooLargeError before anything is fetched, EmbedderMismatchError, IndexVersionError or an
        ArtifactError; nothing of it stays open then.
        """
        check_room(manifest, beside=beside.usage_bytes if beside and self._both_resident else None)
        began_s = time.perf_counter()
        self._fetch_beside(manifest)
        local = self.tiers.ensure_local(manifest)
        try:
            began_s = self._lap("fetch", began_s)
            index = IndexVersion.open(local.path, manifest, embedder_digest=self._embedder_digest)
            try:
                began_s = self._lap("open", began_s)
                index.prefault()
                began_s = self._lap("prefault", began_s)
                index.try_out()
                began_s = self._lap("try out", began_s)
                if self._gpu is not None:
                    index.place(self._gpu, beside=beside)
                    self._lap("place", began_s)
            except BaseException:
                index.close()
                raise
        except BaseException:
            local.pin.release()
            raise
        return Ready(index, local.pin)

    def _lap(self, stage: str, began_s: float) -> float:
        now_s = time.perf_counter()
        self._recorder.record(SWAP_SECONDS, now_s - began_s, {"stage": stage})
        return now_s


def check_room(manifest: Manifest, *, beside: int | None, free_bytes: int | None = None) -> None:
    """Raise IndexTooLargeError when an index version does not fit in memory beside the one that serves.

    What a process copies must fit. The files are page cache, which gives way: they count only where both versions shall
    stay in memory whole, and then `beside` is the size of the one that serves; page cache counts as free, so that what
    is there of both already is on both sides of the sum. `free_bytes` is what this process may take, by default what
    the machine and its cgroups still have.
    """
    copied = copied_bytes(manifest)
    files = sum(
        entry.size_bytes for entry in manifest.files if entry.path in (INDEX_FILE, PASSAGES_FILE, *LEXICAL_MAPPED_FILES)
    )
    needed = copied + (files + beside if beside is not None else 0)
    if not needed:
        return
    free = available_bytes() if free_bytes is None else free_bytes
    if needed <= free * _MEMORY_SHARE:
        return
    pages = "" if beside is None else f" + {_gb(files)} of its files + {_gb(beside)} of the version that serves"
    raise IndexTooLargeError(
        f"{str(manifest.ref)!r} does not fit beside the version that serves: {_gb(copied)} that each process copies"
        f"{pages} = {_gb(needed)}, and {_gb(free * _MEMORY_SHARE)} may be taken ({_MEMORY_SHARE:.0%} of {_gb(free)} "
        "that are free): give the server more memory, or build the index with a smaller recipe"
    )


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.3f} GB"
