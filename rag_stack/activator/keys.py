"""The keys that may wake the service: the files of the Secret that the service reads its own from."""

import asyncio
import logging
from pathlib import Path
from typing import Final

from rag_stack.api.auth import AdminKeyRing, KeyRing, digest

_EVERY_S: Final = 30.0
_LOG = logging.getLogger(__name__)


class Keys:
    """`api` and `admin` in a directory, one key a line. Without a directory, or a file in it, everybody may wake."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self.api: tuple[str, ...] = ()
        self.admin: tuple[str, ...] = ()
        self._known = False

    async def run(self) -> None:
        """Read them again and again, until cancelled: a Secret that is mounted changes under a running pod."""
        while True:
            await self.read()
            await asyncio.sleep(_EVERY_S)

    async def read(self) -> None:
        """Read them. What cannot be read any more stays as it was; the first time it is an error (OSError)."""
        if self._directory is None:
            return
        try:
            self.api = await asyncio.to_thread(_digests, self._directory / "api")
            self.admin = await asyncio.to_thread(_digests, self._directory / "admin")
        except OSError as exc:
            if not self._known:
                raise
            _LOG.warning("the keys cannot be read: %s", exc)
        self._known = True

    def check(self, path: str, authorization: str) -> None:
        """Raises AuthenticationError or PermissionDeniedError for who may not ask for `path`."""
        if path == "/admin" or path.startswith("/admin/"):
            AdminKeyRing(self.admin, api_digests=self.api).check(authorization)
        else:
            KeyRing(self.api).check(authorization)


def _digests(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    return tuple(digest(line.strip()) for line in file.read_text().splitlines() if line.strip())
