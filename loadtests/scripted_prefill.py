"""A device that reads prompts for the scripted engine, and a cache of prefixes: a stand-in for a GPU, and no more.

It computes nothing. One device reads `tokens_per_s`, whoever asks, in chunks of `chunk_tokens`; a chunk that has begun
ends, whether anybody still wants it or not. A block of `block_tokens` is in the cache once its chunk is read, and is
found by all tokens up to its end, as in vLLM. A token is four characters of the prompt.
"""

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_CHARS_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class Device:
    """How fast prompts are read, and what is kept of them."""

    tokens_per_s: float
    block_tokens: int = 16
    chunk_tokens: int = 512
    cache_blocks: int = 50_000


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt's tokens, and how many of them were found in the cache."""

    prompt_tokens: int
    cached_tokens: int


class PrefixCache:
    """The device and its cache. Used from one event loop alone."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._blocks: OrderedDict[bytes, None] = OrderedDict()
        self._busy = asyncio.Lock()

    async def read(self, prompt: str, *, salt: str = "") -> Read:
        """Return when the prompt is read. Cancelled: a chunk that has begun is read to its end, and stays."""
        keys = self._keys(prompt, salt)
        tokens = len(prompt) // _CHARS_PER_TOKEN
        found = self._cached(keys)
        done = found
        while done * self._device.block_tokens < tokens:
            # By others it may have been read meanwhile.
            chunk = asyncio.ensure_future(self._chunk(keys, done, tokens))
            done = await asyncio.shield(chunk)
        return Read(tokens, found * self._device.block_tokens)

    async def _chunk(self, keys: list[bytes], done: int, tokens: int) -> int:
        """Read a chunk after the first `done` blocks; returns how many blocks are read then."""
        async with self._busy:
            done = max(done, self._cached(keys))
            size = min(self._device.chunk_tokens, tokens - done * self._device.block_tokens)
            if size <= 0:
                return done
            await asyncio.sleep(size / self._device.tokens_per_s)
            after = done + -(-size // self._device.block_tokens)
            for key in keys[done:after]:
                self._blocks[key] = None
            while len(self._blocks) > self._device.cache_blocks:
                self._blocks.popitem(last=False)
            return after

    def _cached(self, keys: list[bytes]) -> int:
        """Blocks that are there, from the first on. As in vLLM, one token at least is always read."""
        for n, key in enumerate(keys):
            if key not in self._blocks:
                return n
            self._blocks.move_to_end(key)
        return len(keys)

    def _keys(self, prompt: str, salt: str) -> list[bytes]:
        """A key for each full block but one that holds the prompt's last token."""
        chars = self._device.block_tokens * _CHARS_PER_TOKEN
        blocks = max(0, len(prompt) // _CHARS_PER_TOKEN - 1) // self._device.block_tokens
        keys, parent = [], salt.encode()
        for n in range(blocks):
            parent = hashlib.blake2b(parent + prompt[n * chars : (n + 1) * chars].encode(), digest_size=16).digest()
            keys.append(parent)
        return keys
