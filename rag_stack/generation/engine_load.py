"""What vLLM's scheduler holds, from the statistics that it sends after each step. Read in process, at no cost."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Held:
    """Requests in the batch and before it, and the share of the memory for keys and values that is in use."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class EngineLoad:
    """One of vLLM's statistics loggers: remembers the newest of each engine core, and writes nothing."""

    def __init__(self) -> None:
        self._newest: dict[int, Held] = {}

    def attach(self, engine_client: Any) -> bool:  # noqa: ANN401 - vLLM's AsyncLLM
        """Listen to an engine that runs. False when it keeps no statistics (`disable_log_stats`)."""
        manager = getattr(engine_client, "logger_manager", None)
        if manager is None:
            return False
        manager.stat_loggers.append(self)
        return True

    def now(self) -> Held | None:
        """After the newest step; None until there was one. All cores together, the fullest one's memory."""
        held = self._newest.values()
        if not held:
            return None
        return Held(sum(h.running for h in held), sum(h.waiting for h in held), max(h.kv_usage for h in held))

    def record(
        self,
        scheduler_stats: Any,  # noqa: ANN401 - vLLM's SchedulerStats, or None
        iteration_stats: Any,  # noqa: ANN401, ARG002
        mm_cache_stats: Any = None,  # noqa: ANN401, ARG002
        engine_idx: int = 0,
    ) -> None:
        """VLLM calls this after each step."""
        if scheduler_stats is not None:
            self._newest[engine_idx] = Held(
                scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs, scheduler_stats.kv_cache_usage
            )

    def log(self) -> None:
        """Nothing to write."""

    def log_engine_initialized(self) -> None:
        """Nothing to write."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Its requests are gone before it sleeps."""
