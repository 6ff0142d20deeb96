"""The vector stores of an object store: `stores/<id>/store.json` each, moved by compare-and-set."""

import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Final

from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.config import is_name
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PromotionConflictError,
)
from rag_stack.stores.store import Attachment, Step, Store

MAX_STORES: Final = 1_000
# Writers of one process take turns, so that these are lost to other processes only.
_ATTEMPTS: Final = 8
_READERS: Final = 16
_TURNS: Final = 64
_log = logging.getLogger(__name__)


class Register:
    """Reads and changes stores. Blocking; what a method returns is on the object store.

    It has read every store once before `known` tells of it, and always knows what it has written itself: the process
    that alone writes the stores may ask `known`, which costs nothing. `get` and `all` ask the object store.
    """

    def __init__(self, object_store: ObjectStore) -> None:
        self._object_store = object_store
        self._known: Mapping[str, tuple[bytes, Store]] = {}
        self._lock = Lock()
        self._turns = tuple(Lock() for _ in range(_TURNS))

    def known(self, store_id: str) -> Store | None:
        """A store as this process has last seen it, without asking anybody."""
        found = self._known.get(store_id)
        return found[1] if found and not found[1].deleted else None

    def get(self, store_id: str) -> Store:
        """A store. Raises NotFoundError."""
        store = self._read(store_id)[1]
        if store.deleted:
            raise _missing(store_id)
        return store

    def all(self) -> list[Store]:
        """Every store, oldest first; also those that are being deleted. One that is damaged is logged and left out."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="stores") as readers:
            found = list(readers.map(self._try_read, self._ids()))
        return sorted((each for each in found if each), key=lambda store: (store.created_at, store.store_id))

    def create(
        self,
        *,
        name: str = "",
        description: str = "",
        metadata: Mapping[str, str] | None = None,
        attachments: Iterable[Attachment] = (),
    ) -> Store:
        """A new store, with files that wait if any are given.

        Raises InvalidRequestError when there are as many as can be.
        """
        # A name may be what is left of a deleted store; that it is none takes a read.
        if len(self._ids()) >= MAX_STORES and len(self.all()) >= MAX_STORES:
            raise InvalidRequestError(f"there are {MAX_STORES} stores, no more can be; delete some")
        now = int(time.time())
        store = Store(
            store_id=f"vs_{secrets.token_hex(12)}",
            name=name,
            description=description,
            metadata=metadata or {},
            created_at=now,
            last_active_at=now,
        )
        asked = list(attachments)
        store = store.attached(asked) if asked else store
        data = store.to_bytes()
        self._object_store.compare_and_set(_key(store.store_id), data, expected=None)
        self._keep(store.store_id, (data, store))
        return store

    def change(self, store_id: str, step: Step) -> Store:
        """Take a step with a store; it is taken again from where the store is when another writer was faster.

        Raises NotFoundError, what the step raises, and ConflictError when others are faster again and again.
        """
        with self._turn(store_id):
            # What this process knows is right unless another has written, which the compare-and-set finds out.
            data, store = self._known.get(store_id) or self._read(store_id)
            for _ in range(_ATTEMPTS):
                if store.deleted:
                    raise _missing(store_id)
                changed = step(store)
                if changed is store:
                    # No write has shown that this is still so.
                    fresh = self._read(store_id)
                    if fresh[0] == data:
                        return store
                    data, store = fresh
                    continue
                if (written := self._write(store_id, changed, expected=data)) is not None:
                    return written
                data, store = self._read(store_id)
        raise ConflictError(
            f"the store {store_id!r} is being changed by others at the same time; try again", retry_after_s=1
        )

    def mark_deleted(self, store_id: str) -> Store:
        """Begin to delete a store: it is not found any more. Once more, for one that is marked, changes nothing."""
        with self._turn(store_id):
            for _ in range(_ATTEMPTS):
                data, store = self._read(store_id)
                if store.deleted:
                    return store
                gone = store.model_copy(update={"deleted": True, "files": {}, "batches": {}})
                if (written := self._write(store_id, gone, expected=data)) is not None:
                    return written
        raise ConflictError(f"the store {store_id!r} is being changed by others; try again", retry_after_s=1)

    def forget(self, store_id: str) -> None:
        """Remove the state of a store that is marked as deleted."""
        self._object_store.delete(_key(store_id))
        with self._lock:
            self._known = {key: each for key, each in self._known.items() if key != store_id}

    def _write(self, store_id: str, store: Store, *, expected: bytes) -> Store | None:
        """The store when it was written, None when another writer was faster."""
        # No two states of a store are the same bytes, so that `expected` cannot match an older one by chance.
        store = store.model_copy(update={"revision": store.revision + 1})
        data = store.to_bytes()
        try:
            self._object_store.compare_and_set(_key(store_id), data, expected=expected)
        except PromotionConflictError:
            return None
        self._keep(store_id, (data, store))
        return store

    def _read(self, store_id: str) -> tuple[bytes, Store]:
        if not is_name(store_id):
            raise _missing(store_id)
        try:
            data = self._object_store.read_bytes(_key(store_id))
        except ArtifactNotFoundError as exc:
            with self._lock:
                self._known = {key: each for key, each in self._known.items() if key != store_id}
            raise _missing(store_id) from exc
        known = self._known.get(store_id)
        if known is not None and known[0] == data:
            return known
        read = data, Store.from_bytes(data, where=f"{self._object_store.url}/{_key(store_id)}")
        return self._keep(store_id, read)

    def _try_read(self, store_id: str) -> Store | None:
        try:
            return self._read(store_id)[1]
        except NotFoundError:
            return None
        except ArtifactCorruptError as exc:
            # The others are searched and built all the same.
            _log.error("%s", exc.message)
            return None

    def _keep(self, store_id: str, read: tuple[bytes, Store]) -> tuple[bytes, Store]:
        with self._lock:
            known = self._known.get(store_id)
            # A read that took long must not put an older state over what was written meanwhile.
            if known is None or known[1].revision <= read[1].revision:
                self._known = {**self._known, store_id: read}
        return read

    def _turn(self, store_id: str) -> Lock:
        return self._turns[hash(store_id) % _TURNS]

    def _ids(self) -> list[str]:
        return [name for name in self._object_store.list_names("stores") if is_name(name)]


def _missing(store_id: str) -> NotFoundError:
    return NotFoundError(f"the vector store {store_id!r} does not exist", param="vector_store_id")


def _key(store_id: str) -> str:
    return f"stores/{store_id}/store.json"
