"""Brings new index versions to one process alone: what a cluster's coordinator does for many."""

import asyncio

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.errors import RagStackError
from rag_stack.retrieval.shelf import Shelf


class LocalRollout:
    """Follows the promoted versions of the stores that it is told of, on this process's shelf."""

    def __init__(self, shelf: Shelf, catalog: Catalog) -> None:
        self._shelf = shelf
        self._catalog = catalog

    async def add_store(self, store: str) -> None:
        """Serve a store's promoted version, or an empty store while it has none; again changes nothing.

        Raises StoreLimitError, or what opening a version raises.
        """
        if store in self._shelf:
            return
        self._shelf.add(store)
        await asyncio.to_thread(self._open_promoted, store)

    async def remove_store(self, store: str) -> None:
        """Stop to serve a store; again changes nothing."""
        self._shelf.drop(store)

    async def settle(self, store: str, version: str, timeout_s: float) -> tuple[str, ...]:  # noqa: ARG002
        """Serve a version, or none; it takes as long as opening it takes. Nobody lags: what hinders it is raised."""
        if self._shelf.state()[store].version != version:
            await asyncio.to_thread(self._open, store, version)
        return ()

    def _open_promoted(self, store: str) -> None:
        pointer = self._catalog.promoted("indexes", store)
        try:
            self._open(store, pointer.version if pointer else "")
        except RagStackError:
            # Not there half: the next one who adds it tries again.
            self._shelf.drop(store)
            raise

    def _open(self, store: str, version: str) -> None:
        if not version:
            self._shelf.flip(self._shelf.prepare_empty(store))
            return
        manifest = self._catalog.manifest(ArtifactRef("indexes", store, version))
        self._shelf.flip(self._shelf.prepare(store, manifest))
