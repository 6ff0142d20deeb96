"""What the engine's prefix cache holds, as far as prompts with documents go: a tree that evicts as vLLM does.

A node is a document behind all those before it; a root is what stands before the first document. vLLM (v1/core) keeps
whole blocks alone, frees an answer's blocks from its last to its first, and reuses those first that were freed longest
ago. Here the unit is the document and not the block, so that the tree is small: what it says is an estimate.

Not from vLLM's KV events: the engine's core publishes them from its own process, over a ZeroMQ socket alone (0.29), and
they name blocks by hashes of tokens, which here would have to be made first: every prompt tokenized once more.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rag_stack.errors import ConfigError

Key = int
# vLLM's on GPUs, where nobody says.
_BLOCK_TOKENS: Final = 16
# A node takes about 0.4 kB.
_MAX_NODES: Final = 16_384


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The engine's cache: `blocks` of `block_tokens` each. Without a number of blocks it is not known how many."""

    block_tokens: int = _BLOCK_TOKENS
    blocks: int | None = None

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or (self.blocks is not None and self.blocks < 1):
            raise ConfigError(f"a cache has at least one block of at least one token, got {self}")


UNKNOWN_CACHE: Final = CacheShape()


class Node:
    """A document in its place. `end` is where its tokens end in the prompt, `used` the time of its latest use."""

    __slots__ = ("blocks", "children", "confirmed", "end", "key", "parent", "used")

    def __init__(self, key: Key | None, parent: "Node | None") -> None:
        self.key, self.parent = key, parent
        self.children: dict[Key, Node] = {}
        self.end = self.blocks = self.used = 0
        # Whether an answer has come back for it: until then it may not have been computed.
        self.confirmed = False


class CacheMirror:
    """The tree. Not thread-safe: its owner holds a lock."""

    def __init__(self, shape: CacheShape, *, max_nodes: int = _MAX_NODES) -> None:
        self.block_tokens = shape.block_tokens
        # vLLM sets one block aside as the one that stands for none.
        self._most_blocks = math.inf if shape.blocks is None else max(1, shape.blocks - 1)
        self._max_nodes = max_nodes
        self._roots: dict[Key, Node] = {}
        # From the one that the engine evicts next. A node is older than its parent, always.
        self._oldest_first: OrderedDict[Node, None] = OrderedDict()
        self._used_blocks = 0
        self._clock = 0

    def __len__(self) -> int:
        return len(self._oldest_first)

    @property
    def used_blocks(self) -> int:
        """Blocks that all nodes together hold."""
        return self._used_blocks

    def whole(self, tokens: int) -> int:
        """How many of so many tokens are in whole blocks."""
        return tokens - tokens % self.block_tokens

    def longest(self, before: Key, popular_first: Sequence[Key], *, looks: int) -> list[Node]:
        """The nodes, root first, that hold the most tokens and no document but those asked for; [] where none is.

        Depth first, and popular ones first: where the looks run out, they were spent on what is likeliest.
        """
        root = self._roots.get(before)
        if root is None:
            return []
        # Looked up one by one, in the order in which they are wanted: sets and a sort of what is there cost twice that.
        popular_last, wanted = popular_first[::-1], set(popular_first)
        best, stack = root, [root]
        while stack and looks > 0:
            node = stack.pop()
            looks -= 1
            if node.end > best.end:
                best = node
            if not (children := node.children):
                continue
            # No document stands twice on a path, so whatever is wanted here is not on the way here.
            if len(children) == 1:  # as most have
                (only,) = children.values()
                if only.key in wanted:
                    stack.append(only)
                    looks -= 1
                continue
            known = [child for key in popular_last if (child := children.get(key)) is not None]
            looks -= len(known)
            stack += known
        return _way_to(best)

    def serve(
        self,
        before: Key,
        keys: Sequence[Key],
        ends: Sequence[int],
        *,
        total: int | None = None,
        confirmed: bool = False,
    ) -> None:
        """A prompt is served: its nodes are there, and the newest. `ends` are those of the root and of each document.

        `total` are the tokens of prompt and answer, once they are known.
        """
        self._clock = clock = self._clock + 1
        oldest_first, size = self._oldest_first, self.block_tokens
        node: Node | None = None
        siblings, start = self._roots, 0
        path: list[Node] = []
        for key, end in zip((before, *keys), ends, strict=True):
            parent, node = node, siblings.get(key)
            if node is None:
                node = siblings[key] = Node(key, parent)
                oldest_first[node] = None
            if node.end != end:
                blocks = end // size - start // size
                self._used_blocks += blocks - node.blocks
                node.end, node.blocks = end, blocks
            path.append(node)
            siblings, start = node.children, end
        if total is not None:
            self._add_rest(total - start, at=total)
        for node in reversed(path):
            node.used = clock
            if confirmed:
                node.confirmed = True
            oldest_first.move_to_end(node)
        self._evict()

    def occupy(self, tokens: int) -> None:
        """Something without documents took its place: it lets others be evicted."""
        self._clock += 1
        self._add_rest(tokens, at=tokens)
        self._evict()

    def forget_until(self, used: int) -> None:
        """Whatever was used no later than that is gone: it is older than something of which the engine had nothing."""
        while self._oldest_first and next(iter(self._oldest_first)).used <= used:
            self._drop_oldest()

    def _add_rest(self, tokens: int, *, at: int) -> None:
        """Question and answer, or a prompt without documents: nobody shares them, but they take their room."""
        blocks = at // self.block_tokens - (at - tokens) // self.block_tokens
        if blocks < 1:
            return
        rest = Node(None, None)
        rest.end, rest.blocks, rest.used = at, blocks, self._clock
        self._used_blocks += blocks
        self._oldest_first[rest] = None

    def _evict(self) -> None:
        most = self._most_blocks
        while len(self._oldest_first) > self._max_nodes or self._used_blocks > most:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Take out the node that the engine evicts next, and what stands behind it, if anything still does."""
        node, _ = self._oldest_first.popitem(last=False)
        self._used_blocks -= node.blocks
        if node.key is not None:
            siblings = self._roots if node.parent is None else node.parent.children
            siblings.pop(node.key, None)
        if not node.children:
            return
        behind = list(node.children.values())
        while behind:
            each = behind.pop()
            del self._oldest_first[each]
            self._used_blocks -= each.blocks
            behind += each.children.values()
            each.children = {}


def _way_to(node: Node) -> list[Node]:
    way: list[Node] = []
    at: Node | None = node
    while at is not None:
        way.append(at)
        at = at.parent
    way.reverse()
    return way
