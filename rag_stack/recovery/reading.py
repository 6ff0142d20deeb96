"""What an object store says is promoted, read in one pass.

There is no sequence over all names of a catalog: each promoted pointer has its own revision, and each store made over
HTTP its own. But no two states of either have the same bytes. So when one pass has ended before another one began, and
both have read the same, then all of it was so at every moment in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import KINDS, ArtifactKind
from rag_stack.artifacts.promotion import PointerState
from rag_stack.config import is_name
from rag_stack.errors import ArtifactNotFoundError
from rag_stack.releases.plan import RolloutStore
from rag_stack.stores.store import Store

Address = tuple[ArtifactKind, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """Promoted pointers by kind and name, states of the stores made over HTTP by key, releases in a rollout."""

    pointers: Mapping[Address, PointerState] = field(default_factory=dict)
    stores: Mapping[str, Store] = field(default_factory=dict)
    rollouts: tuple[str, ...] = ()

    def same(self, other: "Reading") -> bool:
        """Whether the same was promoted, and the stores had the same files in the same index versions."""
        return self._content() == other._content()

    def _content(self) -> object:
        promoted = {address: (state.number, state.pointer) for address, state in self.pointers.items()}
        return promoted, {key: (store.revision, store) for key, store in self.stores.items()}


def read(catalog: Catalog) -> Reading:
    """One pass over all names. Blocking. Raises ArtifactCorruptError for a pointer or a store that is damaged."""
    pointers: dict[Address, PointerState] = {}
    for kind in KINDS:
        for name in filter(is_name, catalog.store.list_names(kind)):
            state, _ = catalog.state(kind, name)
            if state.pointer is not None:
                pointers[kind, name] = state
    names = [name for kind, name in pointers if kind == "releases"]
    return Reading(pointers, _stores(catalog), tuple(name for name in names if _is_rolling(catalog, name)))


def _stores(catalog: Catalog) -> dict[str, Store]:
    found = {}
    for store_id in filter(is_name, catalog.store.list_names("stores")):
        # As `stores.register` writes it.
        key = f"stores/{store_id}/store.json"
        try:
            data = catalog.store.read_bytes(key)
        except ArtifactNotFoundError:
            continue  # deleted since it was listed
        store = Store.from_bytes(data, where=f"{catalog.store.url}/{key}")
        if not store.deleted:
            found[key] = store
    return found


def _is_rolling(catalog: Catalog, name: str) -> bool:
    plan = RolloutStore(catalog.store, name).read()
    return plan is not None and plan.running
