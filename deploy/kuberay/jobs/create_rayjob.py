"""Creates a RayJob from a manifest for the Job in whose pod it runs, waits for its end, and ends as it did.

`python create_rayjob.py MANIFEST`, with JOB_NAME and JOB_UID in the environment and a service account that may create
and get RayJobs. Run again for the same Job, it goes on waiting for the same RayJob. With ARTIFACTS_CLAIM, the pods of
the RayJob mount this claim at /artifacts, where the root is then: the head to write, workers to read.
"""

import json
import os
import ssl
import sys
import time
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError

import yaml

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_POLL_S: Final = 15.0
_TIMEOUT_S: Final = 30.0
# What the API server, or the way to it, may fail in a row.
_FAILURES: Final = 40


@dataclass(frozen=True, slots=True)
class Owner:
    """The Job to which the RayJob belongs: it has its name, and is deleted with it."""

    name: str
    uid: str


class RayJobs:
    """The RayJobs of one namespace, at the API server."""

    def __init__(self, server: str, namespace: str, *, token: Path, ca: Path | None) -> None:
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._token = token
        self._tls = None if ca is None else ssl.create_default_context(cafile=str(ca))

    def create(self, rayjob: dict[str, Any]) -> bool:
        """Create it. False when one of its name is there already."""
        try:
            self._call("POST", self._url, rayjob)
        except HTTPError as exc:
            if exc.code == HTTPStatus.CONFLICT:
                return False
            raise
        return True

    def status(self, name: str) -> dict[str, Any]:
        """What the operator says of one; empty before it has seen it."""
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


def rayjob_of(manifest: Path, owner: Owner, *, claim: str = "") -> dict[str, Any]:
    """The RayJob of a manifest, named after its owner; with the artifacts' claim where there is one."""
    (rayjob,) = [each for each in yaml.safe_load_all(manifest.read_text()) if each["kind"] == "RayJob"]
    metadata = rayjob["metadata"]
    metadata["name"] = owner.name
    metadata["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": owner.name, "uid": owner.uid}]
    if claim:
        cluster = rayjob["spec"]["rayClusterSpec"]
        _mount(cluster["headGroupSpec"]["template"]["spec"], claim, read_only=False)
        for group in cluster["workerGroupSpecs"]:
            _mount(group["template"]["spec"], claim, read_only=True)
    return dict(rayjob)


def _mount(pod: dict[str, Any], claim: str, *, read_only: bool) -> None:
    pod["volumes"].append({"name": "artifacts", "persistentVolumeClaim": {"claimName": claim}})
    mount = {"name": "artifacts", "mountPath": "/artifacts"} | ({"readOnly": True} if read_only else {})
    pod["containers"][0]["volumeMounts"].append(mount)


def run(rayjobs: RayJobs, rayjob: dict[str, Any], *, poll_s: float = _POLL_S) -> int:
    """Create it, wait for its end; the exit code. Raises HTTPError for what the API server refuses."""
    name, said, failures = rayjob["metadata"]["name"], "", 0
    print(f"rayjob {name}:", "created" if rayjobs.create(rayjob) else "is there already", flush=True)
    while True:
        try:
            status, failures = rayjobs.status(name), 0
        except URLError as exc:
            failures += 1
            if _refused(exc) or failures >= _FAILURES:
                raise
            status = {}
        deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
        if deployment + job != said:
            said = deployment + job
            print(f"rayjob {name}: {deployment} {job} {status.get('message', '')}".rstrip(), flush=True)
        if deployment in ("Complete", "Failed"):
            return 0 if job == "SUCCEEDED" else 1
        time.sleep(poll_s)


def _refused(exc: URLError) -> bool:
    """Whether it makes no sense to ask again: the RayJob is gone, or not ours to see."""
    return isinstance(exc, HTTPError) and exc.code < HTTPStatus.INTERNAL_SERVER_ERROR


def main() -> int:
    """Run as a pod of a Job."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    rayjobs = RayJobs(
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        (ACCOUNT / "namespace").read_text().strip(),
        token=ACCOUNT / "token",
        ca=ACCOUNT / "ca.crt",
    )
    owner = Owner(os.environ["JOB_NAME"], os.environ["JOB_UID"])
    return run(rayjobs, rayjob_of(Path(sys.argv[1]), owner, claim=os.environ.get("ARTIFACTS_CLAIM", "")))


if __name__ == "__main__":
    sys.exit(main())
