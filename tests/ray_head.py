"""A Ray head of its own, as a cluster's pod starts one: own ports, folder and token, ended by its processes' ids."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from rag_stack.serving.environment import cluster_environment, image_environment
from tests.servers import closed_port

REPOSITORY = Path(__file__).parents[1]
UP_S = 120.0
END_S = 20.0
_MARK = "RAG_STACK_TEST_RAY"
# What a pod has for itself, and this machine has not.
_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
_OTHER_PORTS = (
    "port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
)
_OPTIONS = ("--node-ip-address=127.0.0.1", "--include-dashboard=true", "--disable-usage-stats")


@dataclass(frozen=True)
class RayHead:
    """One that runs."""

    dashboard: str
    environ: Mapping[str, str]
    log: Path

    def deploy(self, file: Path) -> None:
        """`serve deploy`, as a user types it."""
        command = [str(_script("serve")), "deploy", "--address", self.dashboard, str(file)]
        done = subprocess.run(command, env=dict(self.environ), cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def applications(self) -> dict[str, dict[str, Any]]:
        """What the dashboard says of each, by its name."""
        headers = {"Authorization": f"Bearer {self.environ['RAY_AUTH_TOKEN']}"}
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=30.0)
        assert answer.status_code == 200, answer.text
        applications: dict[str, dict[str, Any]] = answer.json()["applications"]
        return applications

    def wait_running(self, names: set[str], *, limit_s: float) -> None:
        """Until all of them run; the message of the first that fails."""
        until_s = time.monotonic() + limit_s
        states: dict[str, str] = {}
        while set(states) != names or set(states.values()) != {"RUNNING"}:
            assert time.monotonic() < until_s, states
            time.sleep(0.5)
            found = self.applications()
            failed = {name: app["message"] for name, app in found.items() if "FAILED" in app["status"]}
            assert not failed, failed
            states = {name: app["status"] for name, app in found.items()}


@contextlib.contextmanager
def ray_head(
    log: Path, *, environ: Mapping[str, str], num_cpus: int, resources: Mapping[str, float]
) -> Iterator[RayHead]:
    """Start one with a cluster's environment, this environment on top, and end all that it has started."""
    port, mark = closed_port(), secrets.token_hex(8)
    ours = {**_cluster(), _MARK: mark, **environ}
    # Not under pytest's own: a socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, log.open("w") as output:
        command = [str(_script("ray")), "start", "--head", "--block", "--temp-dir", folder, f"--num-cpus={num_cpus}"]
        command += [f"--resources={json.dumps(dict(resources))}", f"--dashboard-port={port}", *_OPTIONS]
        command += [f"--{name}={closed_port()}" for name in _OTHER_PORTS]
        process = subprocess.Popen(
            command, env=ours, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            head = RayHead(f"http://127.0.0.1:{port}", ours, log)
            _wait_up(head, process)
            yield head
        finally:
            _end(process, mark)


def _cluster() -> dict[str, str]:
    """A pod's environment, as far as this machine can have it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAG_STACK_"))}
    return {
        **kept,
        **cluster_environment(),
        **image_environment(),
        **{name: str(closed_port()) for name in _PORTS},
        # Thirty seconds in a cluster, for endpoints that this machine has not.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Half a minute by default, which the agent's imports alone may take on a machine with other work.
        "RAY_agent_register_timeout_ms": "120000",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(REPOSITORY),
    }


def _wait_up(head: RayHead, process: "subprocess.Popen[bytes]") -> None:
    until_s = time.monotonic() + UP_S
    while True:
        assert process.poll() is None, head.log.read_text()
        try:
            head.applications()
        except (httpx.TransportError, AssertionError):
            assert time.monotonic() < until_s, head.log.read_text()
            time.sleep(0.5)
        else:
            return


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """By id: first as an operator would, then all that is left with this head's mark."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    left = [each for each in psutil.process_iter() if _marked(each, mark)]
    for each in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, timeout=END_S)


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except (psutil.Error, OSError):
        return False


def _script(name: str) -> Path:
    return Path(sys.executable).with_name(name)
