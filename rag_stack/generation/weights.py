"""The way of the weights to the engine: safe files only, local before the engine looks, and read ahead of it.

The engine's processes import for tens of seconds before one of them opens the first weight file. Meanwhile the replica
reads the files into the page cache, so that the load itself waits for no disk, and so that every further process on the
node finds them in memory. What is larger than that lead is read ahead of the tensors by the worker (`loader`).
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.memory import available_bytes
from rag_stack.artifacts.residency import populate, resident_bytes
from rag_stack.errors import ArtifactError
from rag_stack.metrics import Recorder, record_load
from rag_stack.timeline import Timeline

WEIGHTS: Final = ".safetensors"
# What a model's directory may hold: data that no loader executes.
SAFE_SUFFIXES: Final = frozenset({WEIGHTS, ".json", ".txt", ".jinja", ".model", ".md", ".tiktoken"})
_SAFE_NAMES: Final = frozenset({"LICENSE", "NOTICE", "README"})
# vLLM's loaders that read files through the page cache; the others go past it, or read no files.
_THROUGH_PAGE_CACHE: Final = frozenset({"auto", "hf", "safetensors", "fastsafetensors", "runai_streamer"})


def check_files(manifest: Manifest) -> None:
    """Raise ArtifactError for a model that holds no safetensors, or any file that could be code: pickles, modules."""
    paths = [PurePosixPath(entry.path) for entry in manifest.files]
    unsafe = [str(path) for path in paths if path.suffix not in SAFE_SUFFIXES and path.name not in _SAFE_NAMES]
    if unsafe:
        raise ArtifactError(
            f"{str(manifest.ref)!r} holds {', '.join(map(repr, unsafe[:3]))}{' and more' if len(unsafe) > 3 else ''}; "
            f"a model may hold {', '.join(sorted(SAFE_SUFFIXES))} files alone, because other kinds can run code when "
            "they are loaded: convert the weights to safetensors and publish again with `rag-stack model import`"
        )
    if not any(path.suffix == WEIGHTS for path in paths):
        raise ArtifactError(f"{str(manifest.ref)!r} holds no {WEIGHTS} file; publish it with `rag-stack model import`")


class ReadAhead:
    """A thread that brings files into the page cache, one after another, while there is memory for them.

    Advice and no promise: where it fails or stops early, the reader behind it waits for the disk itself. `read_bytes`
    is what the disk gave.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.read_bytes = 0
        self._paths = tuple(paths)
        self._began_s = self._ended_s = time.time()
        # How far each file is read, and whether nothing more will be.
        self._read_to: dict[Path, int] = {}
        self._ended = False
        self._moved = threading.Condition()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has read what it is going to read."""
        self._thread.join()

    def wait(self, path: Path, end: int) -> None:
        """Wait until a file is read up to a byte, or all is read that is going to be."""
        with self._moved:
            self._moved.wait_for(lambda: self._ended or self._read_to.get(path, 0) >= end)

    def stop(self) -> None:
        """Read nothing more: the reader has all it wants. Waits for the piece that is being read."""
        self._cancelled.set()
        self._thread.join()

    def tell(self, timeline: Timeline, recorder: Recorder) -> None:
        """Report what it did, once it has ended, unless all was in memory before."""
        if self.read_bytes == 0:
            return
        size, source = self.read_bytes, "disk"
        span = timeline.add(
            "read weights ahead", self._began_s, self._ended_s, kind="models", size_bytes=size, source=source
        )
        record_load(recorder, kind="models", stage="prefault", source=source, seconds=span.seconds, size_bytes=size)

    def _run(self) -> None:
        try:
            # Page cache that pushes out other page cache would only move the wait. The engine's copy fits beside it.
            room = available_bytes() // 2
            for path in self._paths:
                if self._cancelled.is_set() or room <= 0:
                    break
                room -= self._read(path, room)
        except OSError as exc:
            logging.getLogger(__name__).warning("cannot read the weights ahead of the engine: %s", exc)
        finally:
            self._ended_s = time.time()
            with self._moved:
                self._ended = True
                self._moved.notify_all()

    def _read(self, path: Path, room: int) -> int:
        size = path.stat().st_size
        missing = size - resident_bytes(path)
        # A second replica on a node finds all of it there, and need not touch every page to know.
        if missing > 0:
            populate(
                path, stop_bytes=room, cancelled=self._cancelled, progress=lambda read_to: self._note(path, read_to)
            )
            missing = min(missing, room) if not self._cancelled.is_set() else 0
            self.read_bytes += missing
        else:
            self._note(path, size)
        return missing

    def _note(self, path: Path, read_to: int) -> None:
        with self._moved:
            self._read_to[path] = read_to
            self._moved.notify_all()


def read_ahead(directory: Path, engine: Mapping[str, Any]) -> ReadAhead:
    """Start to read a model's weights into the page cache, in the order in which the engine wants them.

    `engine` are the release's settings: a loader that goes past the page cache has nothing read for it.
    """
    through = str(engine.get("load_format", "auto")).lower() in _THROUGH_PAGE_CACHE
    return ReadAhead(sorted(directory.rglob(f"*{WEIGHTS}")) if through else ())
