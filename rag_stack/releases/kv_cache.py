"""vLLM's prefix cache, block by block, without an engine: which tokens of a prompt it would have found.

As vllm/v1/core of 0.29 has it for a model whose layers all attend to everything (one group of blocks):
* full blocks alone are found, each by its content and all before it;
* the last token of a prompt is always computed, so a prompt of whole blocks misses its last one;
* a block in use is never taken; free ones are, the longest free first;
* a finished request frees its blocks from the last to the first, so that a prefix outlives what follows it; blocks
  without content that could be found go to the front.
Sliding windows, hybrid models, and speculative decoding have other rules, and are not simulated.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Running:
    """A request that holds blocks; `tokens` are those that the blocks hold."""

    blocks: list[int]
    keys: list[int]
    tokens: int


@dataclass(slots=True)
class BlockCache:
    """`blocks` may be used: vLLM keeps one of its `num_gpu_blocks` for itself. Keys are chained, see KvChains."""

    blocks: int
    block_tokens: int
    _free: OrderedDict[int, None] = field(init=False)
    _holders: list[int] = field(init=False)
    _key_of: list[int | None] = field(init=False)
    _cached: dict[int, dict[int, None]] = field(init=False)
    _running: dict[int, _Running] = field(init=False)

    def __post_init__(self) -> None:
        self._free = OrderedDict.fromkeys(range(self.blocks))
        self._holders = [0] * self.blocks
        self._key_of = [None] * self.blocks
        self._cached, self._running = {}, {}

    def found(self, keys: Sequence[int], *, prompt_tokens: int) -> int:
        """How many blocks of a prompt are there; `keys` are those of its full blocks."""
        return len(self._lookup(keys, prompt_tokens))

    def admit(self, request: int, keys: Sequence[int], *, prompt_tokens: int) -> int | None:
        """Give a request its blocks, and return how many of them were found; None while too few are free."""
        found = self._lookup(keys, prompt_tokens)
        wanted = -(-prompt_tokens // self.block_tokens) - len(found)
        if wanted > len(self._free) - sum(1 for block in found if not self._holders[block]):
            return None
        for block in found:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1
        running = _Running([*found, *(self._take() for _ in range(wanted))], list(keys), prompt_tokens)
        self._keep(running, first=len(found))
        self._running[request] = running
        return len(found)

    def finish(self, request: int, *, output_tokens: int, keys: Sequence[int] = ()) -> None:
        """Let a request go that has generated; `keys` are those of the full blocks that end in its answer.

        The last token of an answer is never computed. An answer for which nothing is free any more keeps what it has.
        """
        running = self._running.pop(request)
        before = running.tokens // self.block_tokens
        running.tokens += max(0, output_tokens - 1)
        running.keys = [*running.keys[:before], *keys]
        while len(running.blocks) * self.block_tokens < running.tokens and self._free:
            running.blocks.append(self._take())
        self._keep(running, first=before)
        keyless: list[int] = []
        keyed: list[int] = []
        for block in reversed(running.blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                (keyless if self._key_of[block] is None else keyed).append(block)
        for block in keyed:
            self._free[block] = None
        for block in reversed(keyless):
            self._free[block] = None
            self._free.move_to_end(block, last=False)

    def _lookup(self, keys: Sequence[int], prompt_tokens: int) -> list[int]:
        found: list[int] = []
        for key in keys[: (prompt_tokens - 1) // self.block_tokens]:
            if not (blocks := self._cached.get(key)):
                break
            found.append(next(iter(blocks)))
        return found

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        if (key := self._key_of[block]) is not None:
            blocks = self._cached[key]
            del blocks[block]
            if not blocks:
                del self._cached[key]
            self._key_of[block] = None
        self._holders[block] = 1
        return block

    def _keep(self, running: _Running, *, first: int) -> None:
        """From now on its full blocks, from the `first`, can be found; two requests may keep the same content."""
        full = min(running.tokens // self.block_tokens, len(running.keys), len(running.blocks))
        for block, key in zip(running.blocks[first:full], running.keys[first:full], strict=True):
            self._key_of[block] = key
            self._cached.setdefault(key, {})[block] = None


@dataclass(slots=True)
class OffloadTier:
    """What lies behind the cache: every block that was computed, the longest unused one goes first. None: no limit."""

    blocks: int | None
    _kept: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def found(self, keys: Sequence[int]) -> int:
        """How many of the blocks are there, from the first on."""
        return next((n for n, key in enumerate(keys) if key not in self._kept), len(keys))

    def store(self, keys: Sequence[int]) -> None:
        """Keep them, and the later ones of a prompt less long."""
        for key in reversed(keys):
            self._kept[key] = None
            self._kept.move_to_end(key)
        while self.blocks is not None and len(self._kept) > self.blocks:
            self._kept.popitem(last=False)
