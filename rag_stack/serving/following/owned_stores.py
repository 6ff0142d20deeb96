"""The stores made over HTTP in the one process that owns them, and how it tells the coordinator of them."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rag_stack.api.store_control import StoreControl
from rag_stack.api.store_encoding import ChunkingLimits
from rag_stack.api.store_keeper import StoreKeeper
from rag_stack.errors import StoreLimitError, UnavailableError
from rag_stack.index.cutting import SPECIAL_TOKENS
from rag_stack.index.format import Chunking
from rag_stack.jobs.store_build import StoreBuild
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.retrieval.rollout import FollowedStore
from rag_stack.serving.opening import OpenRetrieval, vector_stores
from rag_stack.serving.prefixes import ADMIN_APP
from rag_stack.stores.files import Files
from rag_stack.stores.ingest import Ingest
from rag_stack.stores.register import Register

P = ParamSpec("P")
T = TypeVar("T")


def own_stores(pinned: PinnedRelease, retrieval: OpenRetrieval) -> StoreControl:
    """Handlers and loop of the stores; `keeper.ingest.run()` has to run in the event loop that serves the handlers."""
    object_store = retrieval.tiers.catalog.store
    register, files = Register(object_store), Files(object_store)
    auto, most = Chunking(), retrieval.embedder.max_tokens - SPECIAL_TOKENS
    if auto.max_tokens > most:
        auto = Chunking(max_tokens=most, overlap_tokens=min(auto.overlap_tokens, most // 2))
    build = StoreBuild(files, retrieval.tiers, retrieval.embedder, chunking=auto)
    released = frozenset(store.name for store in pinned.release.stores)
    keeper = StoreKeeper(
        register,
        files,
        Ingest(register, build, AdminRollout()),
        ChunkingLimits(auto, retrieval.embedder.max_tokens),
        lambda: released,
    )
    return StoreControl(vector_stores(pinned, retrieval), keeper)


def _translated(ask: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Ray's failures as ours: the coordinator that does not answer now will do so later."""

    @functools.wraps(ask)
    async def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await ask(*args, **kwargs)
        except StoreLimitError as exc:
            # Ray raises a class of its own making, which is of this class too.
            raise StoreLimitError(str(getattr(exc, "cause", exc))) from exc
        except (RayServeException, RayError) as exc:
            raise UnavailableError(f"the coordinator does not answer: {exc}", retry_after_s=5) from exc

    return asked


class AdminRollout:
    """The coordinator behind a Serve handle (`rag_stack.stores.ingest.Rollout`). Raises UnavailableError."""

    def __init__(self) -> None:
        self._handle: Any = None

    @_translated
    async def add_store(self, store: str) -> None:
        """Follow the index of this name in every process."""
        await (await self._admin()).add_store.remote(FollowedStore(store, store))

    @_translated
    async def remove_store(self, store: str) -> None:
        """Drop it in every process."""
        await (await self._admin()).remove_store.remote(store)

    @_translated
    async def settle(self, store: str, version: str, timeout_s: float) -> Sequence[str]:
        """Wait until every process serves what is promoted; who does not."""
        settled = await (await self._admin()).settle.remote(store, version, timeout_s)
        return tuple(settled.lagging)

    async def _admin(self) -> Any:  # noqa: ANN401 - a handle of Serve's is what its deployment is
        self._handle = self._handle or await asyncio.to_thread(serve.get_app_handle, ADMIN_APP)
        return self._handle
