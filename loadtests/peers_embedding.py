"""The CPU time that embedding takes in a serving process, while it answers. Needs nothing but Python.

Every system that `loadtests.peers` compares meters its own embedder, so that what is taken out of its CPU time is what
its embedding took: its library, its neighbours in the process, caches as cold as requests find them.
"""

import time
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")


class EmbeddingMeter:
    """Adds up the CPU time of the threads that embed. Right only where one embedding runs in one thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._seconds = 0.0
        self._calls = 0

    def around(self, embed: Callable[..., T]) -> Callable[..., T]:
        """The function, metered."""

        @wraps(embed)
        def metered(*arguments: Any, **named: Any) -> T:  # noqa: ANN401 - whatever the function takes
            began_s = time.thread_time()
            try:
                return embed(*arguments, **named)
            finally:
                took_s = time.thread_time() - began_s
                with self._lock:
                    self._seconds += took_s
                    self._calls += 1

        return metered

    def told(self) -> dict[str, float]:
        """So far: CPU seconds, and calls."""
        with self._lock:
            return {"cpu_s": self._seconds, "calls": self._calls}
