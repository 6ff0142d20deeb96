"""What a node gives to its peers: chunks of artifacts in its cache, and of those that it is still fetching."""

import os
import re
from pathlib import Path

from rag_stack.artifacts.chunk import Chunk
from rag_stack.artifacts.ledger import Chunks
from rag_stack.artifacts.node_cache import read_manifest
from rag_stack.artifacts.partial import HAVE, have_path
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError

_HEX = re.compile(r"[0-9a-f]{64}")


class Offer:
    """Reads chunks from a cache directory, and never from outside of it."""

    def __init__(self, cache: Path) -> None:
        self._artifacts = cache / "artifacts"
        self._partial = cache / "partial"

    def chunks(self, artifact: str) -> Chunks:
        """The chunks of an artifact (its manifest's hex) that are here now; none where it is not."""
        if not _HEX.fullmatch(artifact):
            return 0
        try:
            return (1 << len(read_manifest(self._artifacts / artifact).chunks())) - 1
        except (OSError, ArtifactCorruptError):
            return sum(1 << index for index, mark in enumerate(self._marks(artifact)) if mark == HAVE)

    def read_into(self, artifact: str, chunk: Chunk, buffer: memoryview) -> None:
        """Fill a buffer of the chunk's size with its bytes, which the receiver verifies.

        Not from a mapping: a file that the disk cuts short would end this process instead of this read. Raises
        ArtifactNotFoundError when the chunk is not here, OSError when it cannot be read.
        """
        descriptor = self._open(artifact, chunk)
        try:
            read = os.preadv(descriptor, [buffer], chunk.offset)
        finally:
            os.close(descriptor)
        if read != buffer.nbytes:
            raise ArtifactNotFoundError(f"{chunk.path!r} has {read} of {buffer.nbytes} bytes at {chunk.offset}")

    def _open(self, artifact: str, chunk: Chunk) -> int:
        if _HEX.fullmatch(artifact):
            for directory in (self._artifacts, self._partial, self._artifacts):
                # Looked at twice, because a fetch that ends moves it from one to the other.
                if directory == self._partial and self._marks(artifact)[chunk.index : chunk.index + 1] != bytes([HAVE]):
                    continue
                try:
                    return _open_inside(directory / artifact, chunk.path)
                except (FileNotFoundError, NotADirectoryError):
                    continue
        raise ArtifactNotFoundError(f"chunk {chunk.index} of {artifact[:64]!r} is not on this node")

    def _marks(self, artifact: str) -> bytes:
        try:
            return have_path(self._partial / artifact).read_bytes()
        except OSError:
            return b""


def _open_inside(directory: Path, path: str) -> int:
    """Open a file below a directory. Neither `..` nor a link leads out of it."""
    real = (directory / path).resolve()
    if not real.is_relative_to(directory.resolve()):
        raise ArtifactNotFoundError(f"{path!r} is not inside the artifact")
    return os.open(real, os.O_RDONLY | os.O_CLOEXEC)
