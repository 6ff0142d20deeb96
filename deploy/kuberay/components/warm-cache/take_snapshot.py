"""Takes a VolumeSnapshot of a claim and waits until it can be used.

`python take_snapshot.py NAMESPACE SNAPSHOT CLAIM CLASS`, in a pod whose account may create and get VolumeSnapshots. Run
again, it waits for the snapshot that is there. Ends with 1 after half an hour.
"""

import json
import os
import ssl
import sys
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_POLL_S: Final = 5.0
_LIMIT_S: Final = 1800.0
_TIMEOUT_S: Final = 20.0


class Snapshots:
    """The VolumeSnapshots of one namespace, at the API server."""

    def __init__(self, server: str, namespace: str, *, token: Path, ca: Path | None) -> None:
        self._url = f"{server}/apis/snapshot.storage.k8s.io/v1/namespaces/{namespace}/volumesnapshots"
        self._token = token
        self._tls = None if ca is None else ssl.create_default_context(cafile=str(ca))

    def create(self, snapshot: dict[str, Any]) -> bool:
        """Create it. False when one of its name is there already."""
        try:
            self._call("POST", self._url, snapshot)
        except HTTPError as exc:
            if exc.code == HTTPStatus.CONFLICT:
                return False
            raise
        return True

    def status(self, name: str) -> dict[str, Any]:
        """What the snapshot controller says of one; empty before it has seen it."""
        status: dict[str, Any] = self._call("GET", f"{self._url}/{name}").get("status") or {}
        return status

    def _call(self, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(url, method=method, data=None if body is None else json.dumps(body).encode())
        # Read each time: the kubelet renews it.
        request.add_header("Authorization", f"Bearer {self._token.read_text().strip()}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self._tls) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def snapshot_of(claim: str, *, name: str, snapshot_class: str) -> dict[str, Any]:
    """The object to create."""
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "rag-stack", "velero.io/exclude-from-backup": "true"},
        },
        "spec": {"volumeSnapshotClassName": snapshot_class, "source": {"persistentVolumeClaimName": claim}},
    }


def run(snapshots: Snapshots, snapshot: dict[str, Any], *, poll_s: float = _POLL_S, limit_s: float = _LIMIT_S) -> int:
    """Create it and wait; the exit code."""
    name = snapshot["metadata"]["name"]
    print(f"{name}: {'taken' if snapshots.create(snapshot) else 'is there already'}", flush=True)
    ends_at = time.monotonic() + limit_s
    while time.monotonic() < ends_at:
        status = snapshots.status(name)
        if status.get("readyToUse"):
            print(f"{name}: ready", flush=True)
            return 0
        if error := (status.get("error") or {}).get("message"):
            # The controller tries again by itself, so this is told and waited for.
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        time.sleep(poll_s)
    print(f"{name}: not ready after {limit_s:.0f} s; see `kubectl describe volumesnapshot {name}`", file=sys.stderr)
    return 1


def main() -> int:
    """In a pod."""
    namespace, name, claim, snapshot_class = sys.argv[1:]
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT_HTTPS"]
    host = f"[{host}]" if ":" in host else host
    snapshots = Snapshots(f"https://{host}:{port}", namespace, token=ACCOUNT / "token", ca=ACCOUNT / "ca.crt")
    return run(snapshots, snapshot_of(claim, name=name, snapshot_class=snapshot_class))


if __name__ == "__main__":
    sys.exit(main())
