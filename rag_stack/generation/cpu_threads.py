"""Which cores vLLM computes on where there are few of them."""

import os
from collections.abc import Callable, Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

_BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"
# Whoever sets one of these has vLLM's own choice in mind.
_SAID: Final = (_BINDING, "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_SIM_MULTI_NUMA")
# Where a core is a quarter of the machine, and more.
_FEW_CORES: Final = 4
_TOPOLOGY: Final = Path("/sys/devices/system/cpu")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def take_all_of_few_cores(
    engine: Mapping[str, Any],
    *,
    cores: Callable[[], Collection[int]] = lambda: usable_cores(),
    on_cpu: Callable[[], bool] = lambda: _computes_on_cpu(),
    environ: MutableMapping[str, str] = os.environ,
) -> None:
    """Let vLLM's threads have every core of a small machine, in this process and its children, before it starts.

    By itself it leaves one to its front end, which waits most of the time: of two that is half of them. For engines on
    a CPU alone; imports vLLM. What is set already stays, and so does vLLM's choice for an engine of several workers, or
    of one that sends its cache elsewhere: each of those needs cores of its own.
    """
    workers = [engine.get(f"{name}_parallel_size", 1) for name in ("tensor", "pipeline", "data")]
    if (
        not on_cpu()
        or workers != [1, 1, 1]
        or engine.get("kv_transfer_config")
        or any(name in environ for name in _SAID)
    ):
        return
    if 1 < len(found := sorted(cores())) <= _FEW_CORES:
        environ[_BINDING] = ",".join(map(str, found))


def usable_cores(
    topology: Path = _TOPOLOGY, quota: Path = _QUOTA, *, allowed: Collection[int] | None = None
) -> set[int]:
    """One processor of each core that this process may run on; empty where it may not use all of their time."""
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    cores: dict[str, int] = {}
    for number in sorted(allowed):
        try:
            siblings = (topology / f"cpu{number}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            siblings = str(number)
        cores.setdefault(siblings.strip(), number)
    return set() if _quota(quota) < len(cores) else set(cores.values())


def _computes_on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _quota(path: Path) -> float:
    """Cores' worth of time that this container may use (cgroup v2); no limit where nothing says so."""
    try:
        time_us, period_us = path.read_text(encoding="ascii").split()
        return float("inf") if time_us == "max" else int(time_us) / int(period_us)
    except (OSError, ValueError):
        return float("inf")
