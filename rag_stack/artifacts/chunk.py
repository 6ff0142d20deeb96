"""The unit that moves and is verified: a piece of one file, with its digest.

BLAKE3, because it was the fastest digest measured (`python -m loadtests.fetch` prints the table): more than twice
SHA-256 on a core with SHA extensions. Chunks are hashed one by one, so that each can come from another source, be
verified before it is written, and be found again after a kill by its digest alone.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from blake3 import blake3

from rag_stack.errors import ArtifactCorruptError

Buffer: TypeAlias = bytes | bytearray | memoryview

CHUNK_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an artifact: `index` in the whole artifact, the file's path, and where in that file it is."""

    index: int
    path: str
    offset: int
    size_bytes: int
    digest: str

    def verify(self, data: Buffer) -> None:
        """Raise ArtifactCorruptError unless these are the chunk's bytes."""
        length = memoryview(data).nbytes
        found = digest(data)
        if (length, found) != (self.size_bytes, self.digest):
            raise ArtifactCorruptError(
                f"file {self.path!r} has {length} bytes with digest {found} at offset {self.offset}, expected "
                f"{self.size_bytes} bytes with {self.digest}"
            )


def digest(data: Buffer) -> str:
    """BLAKE3 as hex. Releases the interpreter's lock on anything large."""
    return str(blake3(data).hexdigest())


def chunk_digests(path: Path) -> tuple[int, tuple[str, ...]]:
    """A file's size and the digests of its chunks. Uses every core and holds one chunk a core. Raises OSError."""
    with path.open("rb") as file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        offsets = range(0, size, CHUNK_BYTES)
        if len(offsets) < 2:
            return size, tuple(digest(os.pread(descriptor, size, offset)) for offset in offsets)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "digest") as pool:
            found = pool.map(lambda offset: digest(os.pread(descriptor, CHUNK_BYTES, offset)), offsets)
            return size, tuple(found)


def matching(directory: Path, chunks: Sequence[Chunk]) -> set[int]:
    """The indices of the chunks that are whole in a directory's files; reads all of them, on every core.

    Raises OSError.
    """

    def right(chunk: Chunk) -> bool:
        try:
            descriptor = os.open(directory / chunk.path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            if _is_hole(descriptor, chunk):
                return False
            return digest(os.pread(descriptor, chunk.size_bytes, chunk.offset)) == chunk.digest
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "digest") as pool:
        return {chunk.index for chunk, found in zip(chunks, pool.map(right, chunks), strict=True) if found}


def _is_hole(descriptor: int, chunk: Chunk) -> bool:
    """Whether nothing was ever written there; then it need not be read."""
    try:
        return os.lseek(descriptor, chunk.offset, os.SEEK_DATA) >= chunk.offset + chunk.size_bytes
    except OSError:
        # ENXIO: no data from there to the end of the file.
        return True
