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
UP_S = 240.0
END_S = 20.0
# What `ray start` may take to end by itself; it waits for more than there is to wait for here.
_ASKED_S = 5.0
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
# Without a process that nobody asks here.
_OPTIONS = ("--include-dashboard=true", "--include-log-monitor=false")
# Ray gives its raylet half a minute to register, and has no setting for it: too short while much else runs here.
_TRIES = 3


@dataclass(frozen=True)
class RayHead:
    """One that runs."""

    dashboard: str
    environ: Mapping[str, str]
    log: Path

    def deploy(self, file: Path, *, limit_s: float) -> set[str]:
        """`serve deploy`, as a user types it, until all that it names runs; what that is.

        Raises AssertionError with the message of the first application that fails.
        """
        began_s = time.time()
        command = [str(_script("serve")), "deploy", "--address", self.dashboard, str(file)]
        done = subprocess.run(command, env=dict(self.environ), cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return self._running(began_s, limit_s=limit_s)

    def applications(self) -> dict[str, dict[str, Any]]:
        """What the dashboard says of each, by its name."""
        headers = {"Authorization": f"Bearer {self.environ['RAY_AUTH_TOKEN']}"}
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=30.0)
        assert answer.status_code == 200, answer.text
        applications: dict[str, dict[str, Any]] = answer.json()["applications"]
        return applications

    def _running(self, began_s: float, *, limit_s: float) -> set[str]:
        until_s = began_s + limit_s
        while True:
            # What was deployed before stays as it was until the controller has taken the file.
            found = self.applications()
            states = {name: app["status"] for name, app in found.items() if app["last_deployed_time_s"] >= began_s}
            failed = {name: found[name]["message"] for name, status in states.items() if "FAILED" in status}
            assert not failed, failed
            if len(states) == len(found) and set(states.values()) == {"RUNNING"}:
                return set(states)
            assert time.time() < until_s, states
            time.sleep(0.5)


@contextlib.contextmanager
def ray_head(
    log: Path, *, environ: Mapping[str, str], num_cpus: int, resources: Mapping[str, float]
) -> Iterator[RayHead]:
    """Start one with a cluster's environment, this environment on top, and end all that it has started."""
    mark = secrets.token_hex(8)
    ours = {**_cluster(), _MARK: mark, **environ}
    # Not under pytest's own: a socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [str(_script("ray")), "start", "--head", "--block", "--temp-dir", folder, f"--num-cpus={num_cpus}"]
        command += [f"--resources={json.dumps(dict(resources))}", *_OPTIONS]
        process: subprocess.Popen[bytes] | None = None
        try:
            for _ in range(_TRIES):
                port = closed_port()
                process = _start([*command, f"--dashboard-port={port}"], ours, log)
                head = RayHead(f"http://127.0.0.1:{port}", ours, log)
                if _is_up(head, process):
                    break
                _end(process, mark)
            else:
                raise AssertionError(log.read_text())
            yield head
        finally:
            if process is not None:
                _end(process, mark)


def _start(command: list[str], environ: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    ports = [f"--{name}={closed_port()}" for name in _OTHER_PORTS]
    with log.open("w") as output:
        return subprocess.Popen(
            [*command, *ports],
            env=dict(environ),
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


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
        # A pod's workers have nobody beside them; here anything else that runs would go before them.
        "RAY_worker_niceness": "0",
        # Half a minute and a minute by default, which their imports alone may take on a machine with other work.
        "RAY_agent_register_timeout_ms": "180000",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "180",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(REPOSITORY),
    }


def _is_up(head: RayHead, process: "subprocess.Popen[bytes]") -> bool:
    """Whether it came up: `ray start` has said so, and the dashboard answers; blocks until it has, or ended."""
    until_s = time.monotonic() + UP_S
    while process.poll() is None:
        assert time.monotonic() < until_s, head.log.read_text()
        with contextlib.suppress(httpx.TransportError, AssertionError):
            head.applications()
            if "Ray runtime started" in head.log.read_text():
                return True
        time.sleep(0.5)
    return False


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """By id: first as an operator would, then all that is left of its descendants and of those with its mark.

    A process that has renamed itself has no environment to read, and one whose parent has ended is nobody's descendant.
    """
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_ASKED_S)
    left = [*descendants, *(each for each in psutil.process_iter() if _marked(each, mark))]
    for each in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, timeout=END_S)
    process.wait(END_S)


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except (psutil.Error, OSError):
        return False


def _script(name: str) -> Path:
    return Path(sys.executable).with_name(name)
