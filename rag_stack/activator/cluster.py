"""How a pod finds its cluster's API server: the address, the service account's token, the authority it trusts."""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from rag_stack.errors import ConfigError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The kubelet puts a new token into the file long before the old one ends.
_TOKEN_FRESH_S: Final = 30.0
_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)


@dataclass(frozen=True, slots=True)
class Cluster:
    """An API server, and what to show it. `ca` None: what this machine trusts."""

    url: str
    token: Path | None
    ca: Path | None

    def client(self) -> httpx.AsyncClient:
        """Calls it. Raises ConfigError when the authority's file cannot be read."""
        try:
            trusted = ssl.create_default_context(cafile=self.ca) if self.url.startswith("https") else True
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(f"expected the cluster's certificate authority in {self.ca}: {exc}") from exc
        auth = TokenAuth(self.token) if self.token else None
        # A proxy of the environment is for the way out of the cluster.
        return httpx.AsyncClient(base_url=self.url, auth=auth, verify=trusted, timeout=_TIMEOUT, trust_env=False)


def in_cluster(environ: Mapping[str, str], account: Path = ACCOUNT) -> Cluster:
    """The cluster in which this pod runs. Raises ConfigError outside of one."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    token = account / "token"
    if not host or not token.is_file():
        raise ConfigError(
            f"expected KUBERNETES_SERVICE_HOST and a service account's token in {token}: run it in a pod with "
            "`automountServiceAccountToken: true`, or name an API server with --api"
        )
    return Cluster(f"https://{f'[{host}]' if ':' in host else host}:{port}", token, account / "ca.crt")


class TokenAuth(httpx.Auth):
    """The token of a file that is written anew again and again; read at once after a 401."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._token = ""
        self._read_at_s = float("-inf")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Show the token."""
        request.headers["authorization"] = f"Bearer {await self._newest()}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._read_at_s = float("-inf")
            request.headers["authorization"] = f"Bearer {await self._newest()}"
            yield request

    async def _newest(self) -> str:
        if time.monotonic() - self._read_at_s >= _TOKEN_FRESH_S:
            try:
                self._token = (await asyncio.to_thread(self._file.read_text)).strip()
                self._read_at_s = time.monotonic()
            except OSError:
                if not self._token:
                    raise
        return self._token
