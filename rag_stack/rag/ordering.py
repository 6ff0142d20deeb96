"""The order of documents in a prompt: first those whose tokens the engine still holds, then those asked for most.

An engine's prefix cache serves a prompt as far as it begins like an earlier one. So the documents that it has in front
already go in front again, as many as there are; behind them the rest, those asked for most often first, since they are
likeliest to be asked for again. Where a set shares nothing with what came before it, its order is its rank.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from rag_stack.rag.cache_mirror import CacheMirror, CacheShape, Key
from rag_stack.rag.passage_ledger import PassageLedger
from rag_stack.types import Hit

OrderName: TypeAlias = Literal["cached", "reading", "rank"]
# Looks into the tree for one prompt, which bound a choice's time. Simulated: with 4 and 8 documents as good as looking
# everywhere, with 20 it finds 96 % of that.
_MAX_LOOKS: Final = 32
# What the prompt puts around each passage, in characters.
_MARKUP_CHARS: Final = 46
# By how much of the prompt an estimated place in it may be wrong.
_ERROR: Final = 0.05


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a prompt holds beside its documents. Prompts share a prefix with documents only when `key` is the same.

    `is_conversation`: earlier turns stand before the documents. `is_private`: not all callers share the prefix, so how
    often others asked for a document may not show in its order, nor its own in theirs.
    """

    key: Key
    before_chars: int = 0
    after_chars: int = 0
    is_conversation: bool = False
    is_private: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """An order of hits, and how many of the prompt's first tokens the engine should have by then.

    `expected` is when each part of the prompt that was there had been used last, what is before the documents first.
    """

    hits: tuple[Hit, ...]
    around: Surroundings
    keys: tuple[Key, ...] = ()
    chars: tuple[int, ...] = ()
    predicted_tokens: int = 0
    expected: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """Tokens of a prompt and its answer, as the engine has counted them; `cached_tokens` None where it does not."""

    prompt_tokens: int
    answer_tokens: int
    cached_tokens: int | None = None


class Ordering(Protocol):
    """Where a prompt gets the order of its documents from. Thread-safe."""

    def plan(self, hits: Sequence[Hit], around: Surroundings) -> Plan:
        """An order for hits that come best first. Changes nothing."""
        ...

    def commit(self, plan: Plan, *, ahead: bool = False) -> None:
        """The prompt with that order goes to the engine; `ahead` of the request that it is for, and counts once."""
        ...

    def observe(self, plan: Plan | None, served: Served) -> None:
        """What the engine told with its answer; without a plan, to a prompt without documents."""
        ...


class FixedOrder:
    """An order that the hits alone decide: `rank`, or `reading`, as documents lie in their folder."""

    def __init__(self, order: Literal["reading", "rank"]) -> None:
        self._reads = order == "reading"

    def plan(self, hits: Sequence[Hit], around: Surroundings) -> Plan:
        """The same for the same hits."""
        return Plan(tuple(sorted(hits, key=_reading_order) if self._reads else hits), around)

    def commit(self, plan: Plan, *, ahead: bool = False) -> None:
        """Nothing to remember."""

    def observe(self, plan: Plan | None, served: Served) -> None:
        """Nothing to learn."""


class DocumentOrder:
    """The order that the engine's cache likes best, for one engine and one release. Bounded in memory and time."""

    def __init__(
        self, shape: CacheShape | None = None, *, max_nodes: int | None = None, max_passages: int | None = None
    ) -> None:
        limits = {} if max_nodes is None else {"max_nodes": max_nodes}
        self._mirror = CacheMirror(shape or CacheShape(), **limits)
        self._ledger = PassageLedger(**({} if max_passages is None else {"max_passages": max_passages}))
        self._lock = threading.Lock()

    def plan(self, hits: Sequence[Hit], around: Surroundings) -> Plan:
        """Those in front that the engine has, as many tokens as it can be, then the others by how often they came."""
        by_key = {hash((hit.passage.title, hit.passage.text)): hit for hit in hits}
        if len(by_key) < len(hits):
            return Plan(tuple(hits), around)  # the same text twice: one place in the tree cannot be both
        with self._lock:
            popular_first = list(by_key) if around.is_private else self._ledger.popular_first(by_key)
            path = self._mirror.longest(around.key, popular_first, looks=_MAX_LOOKS)
            predicted = self._mirror.whole(path[-1].end) if path else 0
            expected = tuple([node.used for node in path if node.confirmed])
        front = dict.fromkeys([node.key for node in path[1:] if node.key is not None])
        # Behind earlier turns that nobody has asked from yet, no other conversation will find these documents.
        behind = by_key if around.is_conversation and not path else popular_first
        keys = (*front, *[key for key in behind if key not in front])
        ordered = tuple([by_key[key] for key in keys])
        return Plan(
            ordered,
            around,
            keys,
            tuple([len((of := hit.passage).title) + len(of.text) + _MARKUP_CHARS for hit in ordered]),
            predicted,
            expected,
        )

    def commit(self, plan: Plan, *, ahead: bool = False) -> None:
        """From now on the engine is taken to have it: prompts that come before its answer can share it already."""
        if not plan.keys:
            return
        with self._lock:
            if ahead:
                ends = self._ends(plan)
            else:
                counts = not plan.around.is_private
                ends = self._ledger.use(plan.around.before_chars, plan.keys, plan.chars, counts=counts)
            self._mirror.serve(plan.around.key, plan.keys, ends)

    def observe(self, plan: Plan | None, served: Served) -> None:
        """Correct token counts, and forget what the engine has evicted earlier than was thought."""
        total = served.prompt_tokens + served.answer_tokens
        cached = served.cached_tokens
        with self._lock:
            if plan is None or not plan.keys:
                self._mirror.occupy(total - (cached or 0))
                return
            around = plan.around.before_chars + plan.around.after_chars
            self._ledger.correct(
                plan.keys, around_chars=around, chars=around + sum(plan.chars), tokens=served.prompt_tokens
            )
            ends = self._ends(plan)
            self._mirror.forget_until(self._missing_since(plan, served, ends))
            self._mirror.serve(plan.around.key, plan.keys, ends, total=total, confirmed=True)

    def sizes(self) -> Mapping[str, int]:
        """What it keeps in memory: nodes, passages, and the blocks that the nodes stand for."""
        with self._lock:
            return {
                "nodes": len(self._mirror),
                "passages": len(self._ledger),
                "blocks": self._mirror.used_blocks,
            }

    def _ends(self, plan: Plan) -> list[int]:
        return self._ledger.ends(plan.around.before_chars, plan.keys, plan.chars)

    def _missing_since(self, plan: Plan, served: Served, ends: Sequence[int]) -> int:
        """When that was last used which the engine should have had and had not; 0 where it had all.

        Ends were estimates, and are made real ones by what the whole prompt took; a block and some more is their error.
        """
        if served.cached_tokens is None or not plan.expected:
            return 0
        slack = self._mirror.block_tokens + _ERROR * served.prompt_tokens
        # The root is the first that was expected, and each that follows one of the documents.
        real = ends[: len(plan.expected)]
        missing = [used for used, end in zip(plan.expected, real, strict=True) if end > served.cached_tokens + slack]
        return max(missing, default=0)


def document_order(order: OrderName, shape: CacheShape | None) -> Ordering:
    """What a release's `prompt.order` names. Without a `shape` the engine has no prefix cache, so rank is as good."""
    match order:
        case "cached":
            return FixedOrder("rank") if shape is None else DocumentOrder(shape)
        case "reading" | "rank":
            return FixedOrder(order)


def _reading_order(hit: Hit) -> tuple[str, str, int]:
    passage = hit.passage
    return str(passage.attributes.get("path", "")), passage.document_id, passage.start
