"""Whether a workload's prefixes fit in the engine's cache, and what offloading them would gain: from a trace.

The model: a first token comes after a fixed time, the tokens that are found nowhere at the rate of the prefill, and
those that a tier has at its bandwidth, one after the other. Nobody waits for anybody else, so it is the time of a
server that is not full; what offloading gains there, it gains more of under load.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rag_stack.releases.kv_rate import KvRates
from rag_stack.releases.kv_simulation import Served, WorkingSet, hit_rate, simulate, working_set
from rag_stack.releases.kv_trace import TracedRequest

# Of the capacity: what a smaller or larger cache would find.
CURVE: Final = (0.5, 1.0, 2.0, 4.0)
# A cache that finds so much of what any could is large enough.
_ENOUGH: Final = 0.95
# Below this nothing is shared that is worth keeping.
_SHARED: Final = 0.05
# What offloading must gain of the mean time to a first token, and the disk over memory alone.
_GAIN: Final = 0.10


@dataclass(frozen=True, slots=True)
class KvSizes:
    """Tokens in a block, blocks that the engine may use, and blocks that memory and disk behind it may hold."""

    block_tokens: int
    capacity_blocks: int
    memory_blocks: int | None
    disk_blocks: int | None


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to keep prefixes: `none`, `cpu`, or `disk` (behind memory). Shares are of the prompts' tokens."""

    name: str
    cached_share: float
    memory_share: float
    disk_share: float
    ttft_mean_s: float
    ttft_median_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The recommendation, `keep`, `share`, `enlarge`, `cpu` or `disk`, and why."""

    choice: str
    text: str


@dataclass(frozen=True, slots=True)
class KvPlan:
    """What a trace says of a cache."""

    requests: int
    prompt_tokens: int
    working_set: WorkingSet
    capacity_tokens: int
    hit_rate: float
    attainable: float
    curve: Mapping[float, float]
    strategies: tuple[Strategy, ...]
    verdict: Verdict


def plan_kv(traces: Sequence[Sequence[TracedRequest]], sizes: KvSizes, rates: KvRates, *, offloads: bool) -> KvPlan:
    """For the traces of one or more replicas, each with a cache of its own; `offloads`: whether its engine can.

    Raises ConfigError where a prompt does not fit in the cache.
    """
    found = {each: _all(traces, sizes, each) for each in ("none", "cpu", "disk")}
    strategies = tuple(_strategy(name, served, rates, sizes) for name, served in found.items())
    sets = [working_set(trace, block_tokens=sizes.block_tokens) for trace in traces]
    whole = WorkingSet(sum(each.distinct_tokens for each in sets), sum(each.shared_tokens for each in sets))
    attainable = hit_rate(_sized(traces, sizes, _endless(traces, sizes)))
    rate = hit_rate(found["none"])
    curve = {n: rate if n == 1.0 else _at(traces, sizes, n) for n in CURVE}
    capacity = sizes.capacity_blocks * sizes.block_tokens
    return KvPlan(
        requests=sum(map(len, traces)),
        prompt_tokens=sum(each.prompt_tokens for each in found["none"]),
        working_set=whole,
        capacity_tokens=capacity,
        hit_rate=rate,
        attainable=attainable,
        curve=curve,
        strategies=strategies,
        verdict=_verdict(rate, attainable, curve, strategies, offloads=offloads),
    )


def ttft_s(served: Served, rates: KvRates, *, block_tokens: int) -> float:
    """Seconds to the first token of one request."""
    seconds = rates.fixed_s.value + served.computed_tokens / rates.prefill.value
    for tokens, gb_per_s in zip(served.tier_tokens, (rates.memory, rates.disk), strict=False):
        # A part of a block is loaded as a whole one, and there are none here.
        seconds += tokens // block_tokens * block_tokens * rates.token_bytes.value / (gb_per_s.value * 1e9)
    return seconds


def _all(traces: Sequence[Sequence[TracedRequest]], sizes: KvSizes, strategy: str) -> list[Served]:
    tiers = {"none": (), "cpu": (sizes.memory_blocks,), "disk": (sizes.memory_blocks, sizes.disk_blocks)}[strategy]
    return _sized(traces, sizes, sizes.capacity_blocks, tiers)


def _sized(
    traces: Sequence[Sequence[TracedRequest]], sizes: KvSizes, capacity: int, tiers: Sequence[int | None] = ()
) -> list[Served]:
    block_tokens = sizes.block_tokens
    runs = (simulate(t, capacity_blocks=capacity, block_tokens=block_tokens, tiers=tiers) for t in traces)
    return [each for run in runs for each in run]


def _at(traces: Sequence[Sequence[TracedRequest]], sizes: KvSizes, times: float) -> float:
    """The hit rate of a cache of another size, which holds the largest prompt at least."""
    largest = max(request.prompt_tokens for trace in traces for request in trace)
    least = -(-largest // sizes.block_tokens)
    return hit_rate(_sized(traces, sizes, max(least, round(sizes.capacity_blocks * times))))


def _endless(traces: Sequence[Sequence[TracedRequest]], sizes: KvSizes) -> int:
    """More blocks than any trace can fill."""
    return max(sum(-(-(r.prompt_tokens + r.output[1]) // sizes.block_tokens) for r in trace) for trace in traces)


def _strategy(name: str, served: Sequence[Served], rates: KvRates, sizes: KvSizes) -> Strategy:
    times = [ttft_s(each, rates, block_tokens=sizes.block_tokens) for each in served]
    tokens = max(1, sum(each.prompt_tokens for each in served))
    memory, disk = (sum(each.tier_tokens[n] for each in served if len(each.tier_tokens) > n) for n in (0, 1))
    return Strategy(
        name, hit_rate(served), memory / tokens, disk / tokens, statistics.fmean(times), statistics.median(times)
    )


def _verdict(
    rate: float, attainable: float, curve: Mapping[float, float], strategies: Sequence[Strategy], *, offloads: bool
) -> Verdict:
    none, memory, disk = strategies
    found = f"the cache finds {rate:.0%} of the prompts' tokens, and one without end would find {attainable:.0%}"
    if attainable < _SHARED:
        return Verdict("share", f"nothing to keep: {found}. Prompts must share their beginnings first")
    if rate >= _ENOUGH * attainable:
        return Verdict("keep", f"the cache is large enough: {found}. Offload would gain nothing to speak of")
    best = disk if disk.ttft_mean_s < (1 - _GAIN) * memory.ttft_mean_s else memory
    gain = 1 - best.ttft_mean_s / none.ttft_mean_s
    if offloads and gain >= _GAIN:
        kept = "to memory" if best is memory else "to memory and disk"
        times = f"{best.ttft_mean_s * 1e3:.0f} ms in place of {none.ttft_mean_s * 1e3:.0f}"
        return Verdict(best.name, f"offload {kept}: {found}; the mean first token comes after {times}")
    if offloads and best.ttft_mean_s >= none.ttft_mean_s:
        return Verdict("keep", f"no offload: {found}, and loading takes longer than computing at these rates")
    enough = next((n for n in sorted(curve) if n > 1 and curve[n] >= _ENOUGH * attainable), None)
    larger = f"{enough:g} times as large would do" if enough else f"more than {max(curve):g} times as large would do"
    why = "" if offloads else "; vLLM offloads on GPUs alone"
    if attainable - rate < _SHARED:
        return Verdict("keep", f"nothing to change: {found}, which is too little to pay for{why}")
    return Verdict("enlarge", f"a larger cache, or fewer replicas that share one: {found}; one {larger}{why}")
