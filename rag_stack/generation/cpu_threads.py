"""Which cores vLLM computes on where there are few of them."""

import os
from collections.abc import Callable, Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

_BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"
# Where a core is a quarter of the machine, and more.
_FEW_CORES: Final = 4
_TOPOLOGY: Final = Path("/sys/devices/system/cpu")


def take_all_of_few_cores(
    engine: Mapping[str, Any],
    *,
    cores: Callable[[], Collection[int]] = lambda: physical_cores(),
    environ: MutableMapping[str, str] = os.environ,
) -> None:
    """Let vLLM's threads have every core of a small machine, in this process and its children, before it starts.

    By itself it leaves one to its front end, which waits most of the time: of two that is half of them. What is set
    already stays, and so does vLLM's own choice for an engine of several workers, each of which needs cores of its own.
    """
    workers = [engine.get(f"{name}_parallel_size", 1) for name in ("tensor", "pipeline", "data")]
    if _BINDING in environ or workers != [1, 1, 1] or not 1 < len(found := sorted(cores())) <= _FEW_CORES:
        return
    environ[_BINDING] = ",".join(map(str, found))


def physical_cores(topology: Path = _TOPOLOGY, *, allowed: Collection[int] | None = None) -> set[int]:
    """One processor of each core that this process may run on; empty where the system does not tell them."""
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    cores: dict[str, int] = {}
    for number in sorted(allowed):
        try:
            siblings = (topology / f"cpu{number}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            siblings = str(number)
        cores.setdefault(siblings.strip(), number)
    return set(cores.values())
