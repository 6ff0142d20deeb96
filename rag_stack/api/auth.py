"""Bearer keys, kept as SHA-256 digests and compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from rag_stack.errors import AuthenticationError, PermissionDeniedError

ANONYMOUS: Final = "anonymous"
# Where a request's scope says who calls, once its key has been checked.
CALLER: Final = "rag_stack.caller"
_FINGERPRINT_HEX: Final = 8


class KeyRing:
    """The keys that may call; with none configured every caller may."""

    def __init__(self, digests: Sequence[str]) -> None:
        self._digests = tuple(digests)

    def check(self, authorization: str) -> str:
        """Who calls: the key's SHA-256, or `anonymous` where there are no keys, whatever the client sends.

        Raises AuthenticationError unless the Authorization header carries a known key.
        """
        if not self._digests:
            return ANONYMOUS
        found = _key_digest(authorization)
        if not _is_known(found, self._digests):
            raise AuthenticationError("the API key is not one that this server knows")
        return found


class AdminKeyRing:
    """The keys that may change what is served. With no keys of any kind every caller may, for local use."""

    def __init__(self, admin_digests: Sequence[str], *, api_digests: Sequence[str]) -> None:
        self._admin = tuple(admin_digests)
        self._api = tuple(api_digests)

    def check(self, authorization: str) -> str:
        """Who calls: the first 8 hex digits of the key's SHA-256, or `anonymous` where there are no keys.

        Raises AuthenticationError without a known key, PermissionDeniedError for a key that may only ask.
        """
        if not self._admin and not self._api:
            return ANONYMOUS
        found = _key_digest(authorization)
        if _is_known(found, self._admin):
            return found[:_FINGERPRINT_HEX]
        if not _is_known(found, self._api):
            raise AuthenticationError("the API key is not one that this server knows")
        if not self._admin:
            raise PermissionDeniedError(
                "admin calls are closed: this server has API keys and no admin keys; give the digest of one as "
                "`server.admin_key_sha256` (`rag-stack key` makes one)"
            )
        raise PermissionDeniedError("this API key may not make admin calls; use one of the admin keys")


def _key_digest(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise AuthenticationError("no API key: send it as `Authorization: Bearer KEY`")
    return digest(key.strip())


def _is_known(found: str, digests: Sequence[str]) -> bool:
    # Every digest is compared, so the time does not tell which one matched.
    matches = [hmac.compare_digest(found, known) for known in digests]
    return any(matches)


def digest(key: str) -> str:
    """SHA-256 of a key, hex. Keys are random and long, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()
