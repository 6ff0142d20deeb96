"""vLLM's prefix cache, asked whole prompts one after another: how many of each one's tokens it would have found."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rag_stack.rag.cache_mirror import CacheShape
from rag_stack.releases.kv_cache import BlockCache


@dataclass(slots=True)
class PromptCache:
    """A cache of that shape, empty at first. `num_gpu_blocks` is vLLM's: it keeps one of them for itself."""

    shape: CacheShape
    _blocks: BlockCache = field(init=False)
    _chains: dict[tuple[int | str, tuple[int, ...]], int] = field(init=False, default_factory=dict)
    _asked: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.shape.blocks is None or self.shape.blocks < 2:
            raise ValueError(f"expected a cache of two blocks or more, got {self.shape}")
        self._blocks = BlockCache(self.shape.blocks - 1, self.shape.block_tokens)

    def serve(self, prompt: Sequence[int], *, answer: Sequence[int] = (), salt: str = "") -> int:
        """Answer a prompt, and say how many of its tokens were there. Raises ValueError where it is too long."""
        size = self.shape.block_tokens
        # The last token of an answer is never computed.
        tokens = [*prompt, *answer[:-1]]
        if len(tokens) > self._blocks.blocks * size:
            raise ValueError(f"{len(tokens)} tokens do not fit into {self._blocks.blocks} blocks of {size}")
        keys = self._keys(tokens, salt)
        whole = len(prompt) // size
        self._asked += 1
        found = self._blocks.admit(self._asked, keys[:whole], prompt_tokens=len(prompt))
        assert found is not None, "nobody else runs"
        self._blocks.finish(self._asked, output_tokens=max(1, len(answer)), keys=keys[whole:])
        return found * size

    def _keys(self, tokens: Sequence[int], salt: str) -> list[int]:
        """Numbers of the full blocks: equal ones have equal tokens, equal ones before them, and an equal salt."""
        size, keys = self.shape.block_tokens, list[int]()
        before: int | str = salt
        for start in range(0, len(tokens) - size + 1, size):
            before = self._chains.setdefault((before, tuple(tokens[start : start + size])), len(self._chains))
            keys.append(before)
        return keys
