"""HAProxy's start: what it answers before it knows an application. A real HAProxy."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rag_stack.serving.environment import free_port, prepare

_EMPTY = """global
    maxconn 16
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend http_frontend
    bind 127.0.0.1:{port}
    {more}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found. Ping http://.../-/routes"
"""
_APPLICATION = "use_backend application if { path_beg /known }"
_BACKEND = 'backend application\n    http-request return status 200 content-type text/plain string "here"\n'


@contextmanager
def _haproxy(config: Path) -> Iterator[None]:
    environment: dict[str, str] = {}
    prepare(environment)
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def _answer(url: str) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        for _ in range(200):
            try:
                return client.get(url)
            except httpx.ConnectError:
                time.sleep(0.02)  # until it listens: it tells nobody
    raise TimeoutError(url)


def test_a_haproxy_that_knows_no_application_says_when_to_ask_again(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(_EMPTY.format(port=port, more=""))
    with _haproxy(config):
        response = _answer(f"http://127.0.0.1:{port}/v1/models")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "starting"


@pytest.mark.parametrize(("path", "status"), [("/known", 200), ("/unknown", 404)])
def test_one_that_knows_applications_answers_as_serve_has_it(tmp_path: Path, path: str, status: int) -> None:
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(_EMPTY.format(port=port, more=_APPLICATION) + _BACKEND)
    before = config.read_text()
    with _haproxy(config):
        assert _answer(f"http://127.0.0.1:{port}{path}").status_code == status
    assert config.read_text() == before


def test_what_is_set_already_stays() -> None:
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": "/opt/haproxy", "RAY_SERVE_HAPROXY_RETRY_ON": "none"}
    prepare(environment)
    assert environment["RAY_SERVE_HAPROXY_BINARY_PATH"] == "/opt/haproxy"
    assert environment["RAY_SERVE_HAPROXY_RETRY_ON"] == "none"
