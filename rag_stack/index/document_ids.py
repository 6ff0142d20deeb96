"""The ids of the documents that were seen, at 8 bytes each, however many there are."""

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

_RECENT: Final = 65_536


class DocumentIds:
    """A set of ids by a digest of 64 bits: the chance of a false alarm is one in 370,000 for ten million documents."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)

    def __contains__(self, document_id: str) -> bool:
        digest = _digest(document_id)
        place = int(np.searchsorted(self._sorted, np.uint64(digest)))
        return digest in self._recent or (place < len(self._sorted) and int(self._sorted[place]) == digest)

    def add(self, document_id: str) -> None:
        """Remember an id."""
        self._recent.add(_digest(document_id))
        if len(self._recent) >= _RECENT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()


def _digest(document_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
