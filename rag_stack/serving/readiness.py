"""What /ready tells of the stores and of the engine's cache.

It asks for no key: names that the release gives, versions and sizes, nothing of anybody.

Who lags, and why, is at GET /admin/swaps.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rag_stack.generation.kv_settings import KvCapacity
from rag_stack.index.gpu_memory import GpuMemory


@dataclass(frozen=True, slots=True)
class StoreTold:
    """A store, the version of it that is served (empty: none yet), and how many processes serve an older one."""

    name: str
    version: str
    lagging: int
    of_release: bool


def store_parts(stores: Iterable[StoreTold]) -> dict[str, str]:
    """The release's own stores by name; of those made over HTTP, whose names are secrets of their owners, the number.

    A process that lags serves too, so nothing here makes a server unready.
    """
    told = list(stores)
    parts = {
        f"store {each.name}": _with_lag(each.version or "no version yet", each.lagging)
        for each in told
        if each.of_release
    }
    made = [each for each in told if not each.of_release]
    if made:
        behind = sum(1 for each in made if each.lagging)
        parts["stores made over HTTP"] = f"{len(made)} open" + (f", {behind} of them not everywhere" if behind else "")
    return parts


def cache_part(capacity: KvCapacity | None) -> dict[str, str]:
    """How many tokens' keys and values fit in the engine's memory; nothing where the engine does not tell."""
    return {} if capacity is None else {"kv cache": str(capacity)}


def gpu_part(gpu: GpuMemory | None) -> dict[str, str]:
    """How many indexes are on the device, and their bytes; nothing where the release wants none there."""
    return {} if gpu is None else {"gpu index": str(gpu)}


def _with_lag(version: str, lagging: int) -> str:
    if not lagging:
        return version
    return f"{version}, {lagging} {'process lags' if lagging == 1 else 'processes lag'}"
