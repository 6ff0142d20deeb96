"""Prefixes of prompts as vLLM caches them: whole blocks, each known by all that stands before it, the oldest go."""

import hashlib
from collections import OrderedDict

_BLOCK_CHARS = 64


class PrefixCache:
    """Of so many characters."""

    def __init__(self, chars: int) -> None:
        self._limit = chars // _BLOCK_CHARS
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def take(self, prompt: str) -> int:
        """How many of the prompt's first characters are cached; from now on, all of it is."""
        digests = _digests(prompt)
        hits = 0
        while hits < len(digests) and digests[hits] in self._blocks:
            hits += 1
        # Its end first, so that of what is not asked for again the end is let go of first.
        for digest in reversed(digests):
            self._blocks[digest] = None
            self._blocks.move_to_end(digest)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)
        return hits * _BLOCK_CHARS


def _digests(prompt: str) -> list[bytes]:
    digests, before = [], b""
    for start in range(0, len(prompt) - _BLOCK_CHARS + 1, _BLOCK_CHARS):
        text = prompt[start : start + _BLOCK_CHARS].encode("utf-8", "replace")
        before = hashlib.blake2b(before + text, digest_size=16).digest()
        digests.append(before)
    return digests
