"""What orders save on the simulated cache: more traces, exponents and block sizes than an engine could be asked."""

import json
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.ordering_orders import Order, bound, oracle, our_order, popular_order, reading_order
from loadtests.ordering_prompts import BEFORE_TOKENS, Synthetic
from loadtests.ordering_trace import Ranked, TraceShape, zipf_trace
from loadtests.peer_environment import peer_python
from loadtests.prompt_cache import PromptCache
from rag_stack.rag.cache_mirror import CacheShape
from rag_stack.rag.ordering import DocumentOrder, Served, Surroundings
from rag_stack.types import Hit, Passage

PEER = Path(__file__).with_name("ordering_peer.py")
AROUND = Surroundings(key=1, before_chars=4 * BEFORE_TOKENS, after_chars=120)


@dataclass(frozen=True, slots=True)
class Simulated:
    """Tokens that each arm's prompts found in the cache, over one trace; `bound` no order can go beyond."""

    prompt_tokens: int
    saved: Mapping[str, int]
    bound: int


def peer_orders(traces: Sequence[Sequence[Ranked]]) -> list[tuple[list[Order], list[float]]]:
    """ContextPilot's orders of each trace, and the CPU microseconds that each question took it. Blocking."""
    done = subprocess.run(
        [peer_python("contextpilot"), str(PEER)], input=json.dumps(traces), capture_output=True, text=True, check=True
    )
    # What else it prints comes before.
    answer = json.loads(done.stdout[done.stdout.index('[{"orders"') :])
    return [([tuple(order) for order in each["orders"]], each["us"]) for each in answer]


def saved_tokens(orders: Sequence[Order], sizes: Mapping[int, int], shape: CacheShape) -> list[int]:
    """What each prompt found, one after another, in a cache that is empty at first."""
    engine = Synthetic(PromptCache(shape), sizes)
    return [engine.ask(order)[1] for order in orders]


def best_order(
    trace: Sequence[Ranked],
    known: Sequence[Sequence[Order]],
    sizes: Mapping[int, int],
    shape: CacheShape,
    *,
    tries: int,
) -> list[Order]:
    """The oracle's."""
    return oracle(trace, known, lambda orders: saved_tokens(orders, sizes, shape), tries=tries, seed=0)


def simulate(trace: Sequence[Ranked], sizes: Mapping[int, int], shape: CacheShape, peer: Sequence[Order]) -> Simulated:
    """All arms on one trace."""
    engine = Synthetic(PromptCache(shape), sizes)
    ordering = DocumentOrder(shape)
    ours = our_order(trace, numbered_hits(sizes), ordering, around=AROUND, ask=engine.ask)
    known = {
        "score": list(trace),
        "reading": reading_order(trace),
        "popular": popular_order(trace),
        "contextpilot": list(peer),
        "ours": ours,
    }
    known["oracle"] = best_order(trace, list(known.values()), sizes, shape, tries=0)
    return Simulated(
        prompt_tokens=sum(BEFORE_TOKENS + 30 + sum(sizes[n] for n in ranked) for ranked in trace),
        saved={arm: sum(saved_tokens(orders, sizes, shape)) for arm, orders in known.items()},
        bound=bound(trace, sizes, before=BEFORE_TOKENS, whole=lambda tokens: tokens - tokens % shape.block_tokens),
    )


def sweep(
    shape: TraceShape, exponents: Sequence[float], shapes: Sequence[CacheShape], *, seeds: int
) -> list[dict[str, float | int | str]]:
    """Shares of prompt tokens that were found, by exponent and block size: means over seeds."""
    rows: list[dict[str, float | int | str]] = []
    if seeds < 1:
        return rows
    sizes = {n: 215 + n * 7 % 31 for n in range(shape.documents)}
    traces = {(e, s): zipf_trace(replace(shape, exponent=e), seed=s) for e in exponents for s in range(seeds)}
    peers = dict(zip(traces, (orders for orders, _ in peer_orders(list(traces.values()))), strict=True))
    for cache in shapes:
        for exponent in exponents:
            done = [simulate(traces[exponent, seed], sizes, cache, peers[exponent, seed]) for seed in range(seeds)]
            whole = sum(each.prompt_tokens for each in done)
            row: dict[str, float | int | str] = {"exponent": exponent, "block_tokens": cache.block_tokens}
            row |= {arm: sum(each.saved[arm] for each in done) / whole for arm in done[0].saved}
            rows.append({**row, "bound": sum(each.bound for each in done) / whole})
    return rows


def microseconds(documents: int, *, requests: int = 400) -> dict[str, float]:
    """CPU time of a choice with so many documents, once the tree and the accounts of passages are full: medians."""
    shape = TraceShape(questions=1 + 24_000 // documents + requests, documents=20_000, per_question=documents)
    trace = zipf_trace(shape, seed=documents)
    hits = numbered_hits(dict.fromkeys(range(shape.documents), 230))
    ordering = DocumentOrder(CacheShape(16, None))
    choice, learning = [], []
    for ranked in trace:
        asked = [hits[n] for n in ranked]
        began = time.thread_time()
        plan = ordering.plan(asked, AROUND)
        ordering.commit(plan)
        chosen = time.thread_time()
        ordering.observe(plan, Served(60 + 230 * documents, 8, plan.predicted_tokens))
        choice.append((chosen - began) * 1e6)
        learning.append((time.thread_time() - chosen) * 1e6)
    return {
        "choice_us": statistics.median(choice[-requests:]),
        "observe_us": statistics.median(learning[-requests:]),
        "nodes": ordering.sizes()["nodes"],
    }


def numbered_hits(sizes: Mapping[int, int]) -> dict[int, Hit]:
    """Passages as long as real ones."""
    return {
        n: Hit(Passage(str(n), str(n), f"{n}: " + "x" * 4 * size, "A title", "", 0, 1), 0.5)
        for n, size in sizes.items()
    }
