"""The way of the weights to the engine: safe files only, local before the engine looks, and read ahead of it.

The engine's processes import for tens of seconds before one of them opens the first weight file. Meanwhile the replica
reads the files into the page cache, so that the load itself waits for no disk, and so that every further process on the
node finds them in memory.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.memory import available_bytes
from rag_stack.artifacts.residency import populate
from rag_stack.errors import ArtifactError

WEIGHTS: Final = ".safetensors"
# What a model's directory may hold: data that no loader executes.
SAFE_SUFFIXES: Final = frozenset({WEIGHTS, ".json", ".txt", ".jinja", ".model", ".md", ".tiktoken"})
_SAFE_NAMES: Final = frozenset({"LICENSE", "NOTICE", "README"})


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

    Advice and no promise: where it fails or stops early, the reader behind it waits for the disk itself.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has read what it is going to read."""
        self._thread.join()

    def stop(self) -> None:
        """Read nothing more: the reader has all it wants."""
        self._cancelled.set()

    def _run(self) -> None:
        try:
            # Page cache that pushes out other page cache would only move the wait. The engine's own copy fits beside it.
            room = available_bytes() // 2
            for path in self._paths:
                populate(path, stop_bytes=room, cancelled=self._cancelled)
                room -= path.stat().st_size
                if room <= 0 or self._cancelled.is_set():
                    return
        except OSError as exc:
            logging.getLogger(__name__).warning("cannot read the weights ahead of the engine: %s", exc)


def read_ahead(directory: Path) -> ReadAhead:
    """Start to read a model's weights into the page cache, in the order in which the engine wants them."""
    return ReadAhead(sorted(directory.rglob(f"*{WEIGHTS}")))
