"""How fast prompts are computed and blocks come back from where they were kept: measured, given, or assumed by name."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Final

from rag_stack.errors import ConfigError
from rag_stack.releases.kv_trace import TracedRequest
from rag_stack.releases.storage_rate import Figure

# Guesses, and shown as such: a model of eight billion parameters on one GPU of a datacenter, its keys and values in 16
# bits and 8 heads, pinned memory over PCIe 4, one NVMe disk.
ASSUMED: Final[Mapping[str, float]] = {
    "prefill": 8000.0,
    "fixed-ms": 20.0,
    "memory": 20.0,
    "disk": 2.0,
    "token-bytes": 131_072.0,
}
# Pairs of requests that a fit looks at.
_SAMPLE: Final = 200
_LEAST: Final = 8


@dataclass(frozen=True, slots=True)
class KvRates:
    """Tokens a second of prefill, seconds before it, GB/s from memory and disk, bytes of a token's keys and values."""

    prefill: Figure
    fixed_s: Figure
    memory: Figure
    disk: Figure
    token_bytes: Figure

    @property
    def assumed(self) -> tuple[str, ...]:
        """The names of those that nobody has measured or given."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name).basis == "assumed")


def kv_rates(
    given: Mapping[str, float], *, measured: Mapping[str, Figure], traces: Sequence[Sequence[TracedRequest]] = ()
) -> KvRates:
    """What was given goes before what was measured, the trace's own first tokens first, and all before a guess.

    Raises ConfigError for a name that is none, or no number above zero.
    """
    for name, value in given.items():
        if name not in ASSUMED:
            raise ConfigError(f"--rate {name}: there is none of that name; expected one of {', '.join(ASSUMED)}")
        if not 0 < value < float("inf"):
            raise ConfigError(f"--rate {name}={value:g}: expected a number above 0")
    known = {**measured, **fitted([request for trace in traces for request in trace])}

    def figure(name: str, *, scale: float = 1.0) -> Figure:
        if name in given:
            return Figure(given[name] * scale, "given")
        return known.get(name) or Figure(ASSUMED[name] * scale, "assumed")

    return KvRates(
        figure("prefill"), figure("fixed-ms", scale=1e-3), figure("memory"), figure("disk"), figure("token-bytes")
    )


def fitted(requests: Sequence[TracedRequest]) -> dict[str, Figure]:
    """The prefill's rate and what comes before it, from a trace that tells first tokens and what was cached.

    Theil and Sen's line: the median slope of pairs, which some requests that waited for others do not move. Nothing
    where too few requests tell, or longer prompts did not take longer.
    """
    points = [
        (request.prompt_tokens - request.cached_tokens, request.ttft_s)
        for request in requests
        if request.ttft_s is not None and request.cached_tokens is not None
    ]
    points = points[:: max(1, len(points) // _SAMPLE)]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if a[0] != b[0]]
    if len(points) < _LEAST or not slopes or (slope := statistics.median(slopes)) <= 0:
        return {}
    fixed_s = max(0.0, statistics.median(seconds - slope * tokens for tokens, seconds in points))
    where = f"{len(points)} first tokens of the trace"
    return {"prefill": Figure(1 / slope, "measured", where), "fixed-ms": Figure(fixed_s, "measured", where)}
