"""What an activator is told: by flags, or by the environment."""

from dataclasses import dataclass
from pathlib import Path

from rag_stack.api.outlook import Rules
from rag_stack.api.places import Limits
from rag_stack.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """`upstream` is the URL of the RayService's own Service. Raises ConfigError for what cannot work."""

    namespace: str
    service: str
    identity: str
    upstream: str
    lease: str = "rag-stack-activator"
    host: str = "0.0.0.0"  # noqa: S104 - in a pod, behind its Service
    port: int = 8000
    ops_port: int = 8081
    idle_s: float = 1800.0
    wake_limit_s: float = 900.0
    heartbeat_s: float = 10.0
    lease_s: float = 15.0
    beat_s: float = 5.0
    drain_s: float = 900.0
    hold_requests: int = 1000
    hold_bytes: int = 256 * 1024 * 1024
    hold_body_bytes: int = 32 * 1024 * 1024
    keys: Path | None = None

    def __post_init__(self) -> None:
        """Check what depends on each other."""
        if not self.identity or not self.service or not self.namespace:
            raise ConfigError("expected a namespace, a RayService and a name of this activator's own; one is empty")
        if self.beat_s * 2 >= self.lease_s:
            raise ConfigError(
                f"expected the Lease ({self.lease_s:g} s) to outlast two beats of {self.beat_s:g} s: give it more time"
            )
        if 0 < self.idle_s < self.lease_s:
            raise ConfigError(
                f"expected idle_s to be 0 (never suspend) or at least lease_s ({self.lease_s:g} s), got {self.idle_s:g}"
            )
        if self.hold_body_bytes > self.hold_bytes:
            raise ConfigError("expected hold_body_bytes, of one request, to be at most hold_bytes, of all of them")
        if not 0 < self.heartbeat_s <= 10.0:
            raise ConfigError(f"expected heartbeat_s to be over 0 and at most 10, got {self.heartbeat_s:g}")

    def rules(self, keys: tuple[str, ...]) -> Rules:
        """How requests wait. With several keys, one may take half of the places."""
        a_caller = self.hold_requests if len(keys) < 2 else max(1, self.hold_requests // 2)
        return Rules(
            models=(),
            api_key_sha256=keys,
            max_body_bytes=self.hold_body_bytes,
            limits=Limits(self.hold_requests, self.hold_bytes, a_caller),
            # Whoever waits for a wake that fails is told so then; who waits for the engine behind it goes on waiting.
            hold_s=2 * self.wake_limit_s,
            heartbeat_s=self.heartbeat_s,
        )
