"""Prometheus and promtool, from the PATH or from Debian's package, which is unpacked and not installed."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.servers import closed_port

REPOSITORY = Path(__file__).parents[1]
MONITORING = REPOSITORY / "deploy" / "kuberay" / "components" / "monitoring"
_CACHE = REPOSITORY / "var" / "test-cache" / "prometheus"
_DOWNLOAD_S = 120
_START_S = 30.0


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`; the test is skipped where neither PATH nor package has it."""
    if found := shutil.which(name):
        return found
    unpacked = _CACHE / "usr" / "bin" / name
    if not unpacked.exists():
        _unpack()
    return str(unpacked)


def rule_groups() -> list[dict[str, Any]]:
    """The rules of the PrometheusRule, as Prometheus itself reads them."""
    document = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    groups: list[dict[str, Any]] = document["spec"]["groups"]
    return groups


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector, or the scalar, that answers an expression now."""
        response = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        body = response.json()
        assert body["status"] == "success", f"{expression}: {body.get('error')}"
        assert body["data"]["resultType"] == "vector", expression
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    def answered(self, expressions: Sequence[str], *, limit_s: float) -> list[str]:
        """Ask until each has had an answer, or the limit is over; those that had none."""
        left, until_s = list(expressions), time.monotonic() + limit_s
        while left and time.monotonic() < until_s:
            left = [each for each in left if not self.query(each)]
        return left


@contextlib.contextmanager
def prometheus(folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """A server with a configuration, on a free port, with its data in `folder`."""
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(dict(config)))
    port = closed_port()
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            running = Prometheus(f"http://127.0.0.1:{port}")
            _wait_ready(running, process, folder / "prometheus.log")
            yield running
        finally:
            process.terminate()
            process.wait(30)


def _wait_ready(running: Prometheus, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{running.url}/-/ready", timeout=5).is_success:
                return
    raise AssertionError(f"Prometheus was not ready in {_START_S:g} s:\n{log.read_text()}")


def _unpack() -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("needs Prometheus: install it, or run on Debian or Ubuntu, whose package is then fetched")
    folder = _CACHE.with_suffix(".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["apt-get", "download", "prometheus"], cwd=folder, capture_output=True, text=True, timeout=_DOWNLOAD_S
    )
    packages = list(folder.glob("*.deb"))
    if done.returncode or not packages:
        pytest.skip(f"needs Prometheus, and its package cannot be had: {done.stderr.strip()[-200:]}")
    subprocess.run(["dpkg", "-x", str(packages[0]), str(folder)], check=True)
    packages[0].unlink()
    shutil.rmtree(_CACHE, ignore_errors=True)
    folder.rename(_CACHE)
