"""VLLM's prefix cache as a program: which tokens of a prompt are there when prompts come one after another.

After vllm/v1/core of vLLM 0.29 (block_pool.py, kv_cache_manager.py, single_type_kv_cache_manager.py), for models with
full attention:
* a block is found by its tokens and all before them, and only whole blocks are kept;
* of a prompt at most all tokens but the last can be found;
* new blocks come from the front of a queue of free ones, and what such a block held is forgotten then, not before;
* an answer's blocks are freed from its last to its first: whole ones go to the queue's end, others to its front;
* one block of all is set aside. The last token of an answer is never computed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Chain: TypeAlias = int


@dataclass(slots=True)
class BlockCache:
    """`blocks` of `block_tokens` each."""

    blocks: int
    block_tokens: int
    # Free blocks from the one that is taken next.
    _free: OrderedDict[int, None] = field(init=False)
    _chain_of: dict[int, Chain] = field(init=False, default_factory=dict)
    _blocks_of: dict[Chain, list[int]] = field(init=False, default_factory=dict)
    _chains: dict[tuple[Chain | str, tuple[int, ...]], Chain] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.blocks < 2 or self.block_tokens < 1:
            raise ValueError(f"a cache has two blocks or more, of one token or more, got {self.blocks}")
        self._free = OrderedDict.fromkeys(range(1, self.blocks))

    def serve(self, prompt: Sequence[int], *, answer: Sequence[int] = (), salt: str = "") -> int:
        """Answer a prompt, and say how many of its tokens were there. Raises ValueError where it is too long."""
        tokens = [*prompt, *answer[:-1]]
        chains = self._chain(tokens, salt)
        found = self._find(chains[: (len(prompt) - 1) // self.block_tokens])
        needed = -(-len(tokens) // self.block_tokens)
        for block in found:
            self._free.pop(block)
        if needed - len(found) > len(self._free):
            raise ValueError(f"{len(tokens)} tokens do not fit into {self.blocks} blocks of {self.block_tokens}")
        held = found + [self._take() for _ in range(needed - len(found))]
        for block, chain in zip(held[len(found) :], chains[len(found) :], strict=False):
            self._chain_of[block] = chain
            self._blocks_of.setdefault(chain, []).append(block)
        self._give_back(held)
        return len(found) * self.block_tokens

    def _chain(self, tokens: Sequence[int], salt: str) -> list[Chain]:
        chains: list[Chain] = []
        before: Chain | str = salt
        for start in range(0, len(tokens) - self.block_tokens + 1, self.block_tokens):
            key = (before, tuple(tokens[start : start + self.block_tokens]))
            before = self._chains.setdefault(key, len(self._chains))
            chains.append(before)
        return chains

    def _find(self, chains: Sequence[Chain]) -> list[int]:
        found: list[int] = []
        for chain in chains:
            if not (blocks := self._blocks_of.get(chain)):
                break
            found.append(blocks[0])
        return found

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        if (chain := self._chain_of.pop(block, None)) is not None:
            self._blocks_of[chain].remove(block)
            if not self._blocks_of[chain]:
                del self._blocks_of[chain]
        return block

    def _give_back(self, held: Sequence[int]) -> None:
        for block in reversed(held):
            self._free[block] = None
        # Those that nothing will find stand in front, in the order in which they were given back.
        for block in (each for each in held if each not in self._chain_of):
            self._free.move_to_end(block, last=False)
