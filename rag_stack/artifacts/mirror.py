"""Artifacts that somebody else has put on this node, on a volume that nobody writes to: used where they lie.

A mirror is laid out as a node's cache, so `rag-stack cache warm --cache DIRECTORY` fills one: onto a volume that many
nodes mount read-only, or into an image that is mounted as one. What is in it takes no second place in the cache.
"""

import logging
import os
from pathlib import Path
from typing import Final

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.errors import ArtifactError, ConfigError

_SCHEME: Final = "file://"
_LOG: Final = logging.getLogger(__name__)


class Mirror:
    """One such directory. It is never written to, evicted from or repaired, and it need not be there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._cache = NodeCache(directory)
        self._verified: dict[str, Path] = {}

    def manifest(self, digest: str) -> Manifest | None:
        """The manifest with a digest, if its artifact is here."""
        return self._cache.manifest(digest)

    def find(self, manifest: Manifest) -> Path | None:
        """The directory of an artifact, or None. Blocking: every byte is verified, once a process.

        Its bytes came past no verification of this node's, so they are read and checked as from any source; that
        brings them into memory, where they are needed next. What is damaged is told and counts as absent.
        """
        if manifest.digest in self._verified:
            return self._verified[manifest.digest]
        try:
            path = self._cache.find(manifest)
            if path is not None:
                self._cache.verify(manifest)
                self._verified[manifest.digest] = path
        except ArtifactError as exc:
            _LOG.warning("the mirror is passed by: %s", exc)
            return None
        return path


def open_mirror(url: str | None) -> Mirror | None:
    """The mirror at a `file://` URL or a path; None without one. Raises ConfigError for another kind of URL.

    One that this process could write to is used, with a warning: its bytes are verified once, so whoever else can write
    there could change them after that.
    """
    if not url:
        return None
    path = url.removeprefix(_SCHEME)
    if "://" in path or not path:
        raise ConfigError(f"RAG_STACK_MIRROR is {url!r}; expected a directory, such as file:///mirror")
    if os.access(path, os.W_OK):
        _LOG.warning("the mirror %s can be written to: mount it read-only, since what is in it is verified once", path)
    return Mirror(Path(path))
