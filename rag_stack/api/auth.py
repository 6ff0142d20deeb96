"""Bearer keys, kept as SHA-256 digests and compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence

from rag_stack.errors import AuthenticationError


class KeyRing:
    """The keys that may call; with none configured every caller may."""

    def __init__(self, digests: Sequence[str]) -> None:
        self._digests = tuple(digests)

    def check(self, authorization: str) -> None:
        """Raise AuthenticationError unless the Authorization header carries a known key."""
        if not self._digests:
            return
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise AuthenticationError("no API key: send it as `Authorization: Bearer KEY`")
        found = digest(key.strip())
        # Every digest is compared, so the time does not tell which one matched.
        matches = [hmac.compare_digest(found, known) for known in self._digests]
        if not any(matches):
            raise AuthenticationError("the API key is not one that this server knows")


def digest(key: str) -> str:
    """SHA-256 of a key, hex. Keys are random and long, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()
