"""What is known of the engine while nobody may be served yet, and the rules by which requests wait for it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from rag_stack.api.places import Limits

EngineState: TypeAlias = Literal["asleep", "starting", "ready", "failed"]
Look: TypeAlias = Callable[[], Awaitable["Outlook"]]

MAX_RETRY_AFTER_S: Final = 60


@dataclass(frozen=True, slots=True)
class Rules:
    """What the room needs of a release."""

    models: tuple[str, ...]
    api_key_sha256: tuple[str, ...]
    max_body_bytes: int
    limits: Limits
    hold_s: float
    heartbeat_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of the engine now, and in how many seconds it will serve if it is asked to.

    `why` is told to whom waits for one that has failed.
    """

    rules: Rules
    state: EngineState
    estimate_s: float
    why: str = "the engine does not start"

    def retry_after_s(self) -> int:
        """For a Retry-After: what remains of the start, from 1 s to what every client accepts."""
        return max(1, min(MAX_RETRY_AFTER_S, int(self.estimate_s) + 1))
