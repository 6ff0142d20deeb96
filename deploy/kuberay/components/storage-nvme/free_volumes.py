"""Frees the volumes whose claim is gone, so that the next pod's claim can bind them; their files stay.

`python free_volumes.py VOLUME...`, in a pod whose account may get and patch these PersistentVolumes. A volume that is
kept (`Retain`) stays `Released` and bound to the claim that it had; taking away `claimRef`, on the condition that it is
still that claim's, makes it `Available` again. Ends with 1 when a volume could not be asked for or freed.
"""

import json
import os
import ssl
import sys
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S: Final = 20.0


class Volumes:
    """PersistentVolumes, at the API server."""

    def __init__(self, server: str, *, token: Path, ca: Path | None) -> None:
        self._url = f"{server}/api/v1/persistentvolumes"
        self._token = token
        self._tls = None if ca is None else ssl.create_default_context(cafile=str(ca))

    def get(self, name: str) -> dict[str, Any]:
        """One of them. Raises OSError."""
        return self._call("GET", name)

    def free(self, name: str, *, claim: str) -> bool:
        """Take its claim away, by the claim's uid. False when it is another one's by now. Raises OSError."""
        gone = [
            {"op": "test", "path": "/spec/claimRef/uid", "value": claim},
            {"op": "remove", "path": "/spec/claimRef"},
        ]
        try:
            self._call("PATCH", name, gone)
        except HTTPError as exc:
            # A JSON patch whose `test` does not hold.
            if exc.code == HTTPStatus.UNPROCESSABLE_ENTITY:
                return False
            raise
        return True

    def _call(self, method: str, name: str, patch: list[dict[str, str]] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._url}/{name}", method=method, data=None if patch is None else json.dumps(patch).encode()
        )
        request.add_header("Authorization", f"Bearer {self._token.read_text().strip()}")
        request.add_header("Content-Type", "application/json-patch+json")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self._tls) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def run(volumes: Volumes, names: list[str]) -> int:
    """Free what is released of these; the exit code."""
    failed = 0
    for name in names:
        try:
            volume = volumes.get(name)
            claim = (volume["spec"].get("claimRef") or {}).get("uid")
            if claim and volume.get("status", {}).get("phase") == "Released" and volumes.free(name, claim=claim):
                print(f"{name}: freed", flush=True)
        except OSError as exc:  # HTTPError is one
            failed = 1
            print(f"{name}: {exc}", file=sys.stderr, flush=True)
    return failed


def main() -> int:
    """In a pod."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT_HTTPS"]
    host = f"[{host}]" if ":" in host else host
    return run(Volumes(f"https://{host}:{port}", token=ACCOUNT / "token", ca=ACCOUNT / "ca.crt"), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
