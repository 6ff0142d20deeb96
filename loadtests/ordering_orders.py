"""Orders of a whole trace: what each arm would send, and the best for one who knows what is still to come."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from loadtests.ordering_trace import Ranked
from rag_stack.rag.ordering import DocumentOrder, Plan, Served, Surroundings
from rag_stack.types import Hit

Order: TypeAlias = tuple[int, ...]
# Tokens that the cache had of each prompt of a trace, when documents stand so.
Serve: TypeAlias = Callable[[Sequence[Order]], Sequence[int]]
# And of one prompt, the next: (tokens of the prompt, those that the cache had).
Ask: TypeAlias = Callable[[Order], tuple[int, int]]


def reading_order(trace: Sequence[Ranked]) -> list[Order]:
    """Documents as they are numbered, whatever was asked."""
    return [tuple(sorted(ranked)) for ranked in trace]


def our_order(
    trace: Sequence[Ranked], hits: Mapping[int, Hit], ordering: DocumentOrder, *, around: Surroundings, ask: Ask
) -> list[Order]:
    """What our order gives, question after question, told what the cache had each time."""
    number = {id(hit): n for n, hit in hits.items()}
    orders = []
    for ranked in trace:
        plan: Plan = ordering.plan([hits[n] for n in ranked], around)
        ordering.commit(plan)
        order = tuple(number[id(hit)] for hit in plan.hits)
        tokens, cached = ask(order)
        ordering.observe(plan, Served(tokens, 0, cached))
        orders.append(order)
    return orders


def popular_order(trace: Sequence[Ranked]) -> list[Order]:
    """By how often documents come in the whole trace: the order of an FP-tree."""
    uses = Counter(document for ranked in trace for document in ranked)
    return [tuple(sorted(ranked, key=lambda document: (-uses[document], document))) for ranked in trace]


def smallest_tree(trace: Sequence[Ranked]) -> list[Order]:
    """Greedily the smallest prefix tree of the whole trace: what most have in common goes in front of them.

    So again among those that have it, and among the others. The smallest of all trees is NP-hard to find.
    """
    orders: list[list[int]] = [[] for _ in trace]
    groups = [list(range(len(trace)))]
    while groups:
        group = groups.pop()
        left = {n: set(trace[n]) - set(orders[n]) for n in group}
        uses = Counter(document for n in group for document in left[n])
        if not uses:
            continue
        document, count = max(uses.items(), key=lambda item: (item[1], -item[0]))
        if count == 1:
            for n in group:
                orders[n] += sorted(left[n])
            continue
        having = [n for n in group if document in left[n]]
        for n in having:
            orders[n].append(document)
        groups += [having, [n for n in group if document not in left[n]]]
    return [tuple(order) for order in orders]


def oracle(
    trace: Sequence[Ranked], candidates: Sequence[Sequence[Order]], serve: Serve, *, tries: int, seed: int
) -> list[Order]:
    """The best order found by one who knows the whole trace, and tries it on the simulated cache.

    It is the best of `candidates` (our own among them) and of the greedy smallest tree, improved by `tries` single
    changes: a random question takes the order of another one's prefix, or any. No proof that nothing is better:
    `bound` says what nothing can be better than.
    """
    draw = random.Random(seed)
    starts = [list(each) for each in (*candidates, smallest_tree(trace), popular_order(trace))]
    best = max(starts, key=lambda orders: sum(serve(orders)))
    most = sum(serve(best))
    for _ in range(tries):
        n = draw.randrange(len(trace))
        changed = list(best)
        changed[n] = _another(best, n, draw)
        if (saved := sum(serve(changed))) > most:
            best, most = changed, saved
    return best


def bound(trace: Sequence[Ranked], tokens: Mapping[int, int], *, before: int, whole: Callable[[int], int]) -> int:
    """Tokens that no order can save more of, were the cache endless.

    A prefix that is found was all of it in one earlier prompt, so its documents are among those that two sets share.
    """
    sets = [frozenset(ranked) for ranked in trace]
    saved = 0
    for n, each in enumerate(sets):
        shared = (sum(tokens[document] for document in each & earlier) for earlier in sets[:n])
        saved += whole(before + max(shared, default=0)) if n else 0
    return saved


def _another(orders: Sequence[Order], n: int, draw: random.Random) -> Order:
    """An order for question n that begins as another question's does, as far as it can, or any order."""
    own = list(orders[n])
    other = orders[draw.randrange(len(orders))]
    front = [document for document in other if document in own]
    if not front or draw.random() < 0.2:
        draw.shuffle(own)
        return tuple(own)
    rest = [document for document in own if document not in front]
    draw.shuffle(rest)
    return (*front, *rest)
