"""What a trace finds in a cache of a size, and in what lies behind it."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from rag_stack.errors import ConfigError
from rag_stack.releases.kv_cache import BlockCache, OffloadTier
from rag_stack.releases.kv_trace import KvChains, TracedRequest


@dataclass(frozen=True, slots=True)
class Served:
    """One request: its tokens, those found in the cache, and those found in each tier behind it."""

    prompt_tokens: int
    cached_tokens: int
    tier_tokens: tuple[int, ...] = ()

    @property
    def computed_tokens(self) -> int:
        """What the engine has to compute."""
        return self.prompt_tokens - self.cached_tokens - sum(self.tier_tokens)


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """Tokens of the different full blocks of all prompts, and of those among them that are asked for again."""

    distinct_tokens: int
    shared_tokens: int


@dataclass(slots=True)
class _Replica:
    """A cache and who runs in it, in the order of their ends."""

    cache: BlockCache
    ends: list[tuple[float, int]] = field(default_factory=list)
    answers: dict[int, tuple[int, list[int]]] = field(default_factory=dict)

    def finish_next(self) -> None:
        """The one that ends first."""
        _, number = heapq.heappop(self.ends)
        tokens, keys = self.answers.pop(number)
        self.cache.finish(number, output_tokens=tokens, keys=keys)


def simulate(
    requests: Sequence[TracedRequest], *, capacity_blocks: int, block_tokens: int, tiers: Sequence[int | None] = ()
) -> list[Served]:
    """Every request in its turn, with `capacity_blocks` to use and tiers of so many blocks behind them.

    A request runs from its arrival for as long as the trace says, and waits while there is no room; one without a
    duration ends before the next begins. Raises ConfigError where a prompt is larger than the cache.
    """
    replica = _Replica(BlockCache(capacity_blocks, block_tokens))
    chains = KvChains(block_tokens)
    behind = [OffloadTier(blocks) for blocks in tiers]
    served = []
    for number, request in enumerate(requests):
        while replica.ends and replica.ends[0][0] <= request.arrival_s:
            replica.finish_next()
        keys = chains.keys(request.segments)
        whole = chains.keys((*request.segments, (request.output[0], max(0, request.output[1] - 1))))
        found = _admit(replica, number, keys, request)
        served.append(_served(request, keys, found, behind, block_tokens))
        for tier in behind:
            tier.store(whole)
        replica.answers[number] = (request.output[1], whole[len(keys) :])
        heapq.heappush(replica.ends, (request.arrival_s + (request.seconds or 0.0), number))
    return served


def hit_rate(served: Sequence[Served]) -> float:
    """Tokens found in the cache over tokens of prompts, as vLLM counts its prefix cache's hits and queries."""
    return sum(each.cached_tokens for each in served) / max(1, sum(each.prompt_tokens for each in served))


def working_set(requests: Sequence[TracedRequest], *, block_tokens: int) -> WorkingSet:
    """What would have to be kept for nothing to be computed twice."""
    chains = KvChains(block_tokens)
    times: dict[int, int] = {}
    for request in requests:
        for key in chains.keys(request.segments):
            times[key] = times.get(key, 0) + 1
    shared = sum(1 for count in times.values() if count > 1)
    return WorkingSet(len(times) * block_tokens, shared * block_tokens)


def _admit(replica: _Replica, number: int, keys: Sequence[int], request: TracedRequest) -> int:
    while (found := replica.cache.admit(number, keys, prompt_tokens=request.prompt_tokens)) is None:
        if not replica.ends:
            raise ConfigError(
                f"a prompt of the trace has {request.prompt_tokens} tokens, and the cache holds "
                f"{replica.cache.blocks * replica.cache.block_tokens}: no engine of that size has served it"
            )
        replica.finish_next()
    return found


def _served(
    request: TracedRequest, keys: Sequence[int], found: int, behind: Sequence[OffloadTier], block_tokens: int
) -> Served:
    """The tiers are asked one after the other for what follows; here too the last token is computed."""
    place, of_tiers = found, []
    findable = (request.prompt_tokens - 1) // block_tokens
    for tier in behind:
        more = tier.found(keys[place:findable])
        of_tiers.append(more * block_tokens)
        place += more
    return Served(request.prompt_tokens, found * block_tokens, tuple(of_tiers))
