"""HAProxy as we have Serve start and set it: what it answers for who is not there. A real HAProxy."""

import os
import signal
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from openai import APIConnectionError, OpenAI

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


class _Dying(socketserver.ThreadingTCPServer):
    """A replica that takes each request, says `says` and is gone."""

    daemon_threads = True

    def __init__(self, says: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Death)
        self.says = says
        self.asked = 0


class _Death(socketserver.BaseRequestHandler):
    server: _Dying

    def handle(self) -> None:
        self.request.recv(65536)
        self.server.asked += 1
        self.request.sendall(self.server.says)


@contextmanager
def _replicas(*says: bytes) -> Iterator[list[_Dying]]:
    servers = [_Dying(each) for each in says]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    yield servers
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def _backend(servers: list[_Dying]) -> str:
    """As Serve's own template has it, with our settings in it."""
    settings: dict[str, str] = {}
    prepare(settings)
    lines = [f"    server s{n} 127.0.0.1:{server.server_address[1]}" for n, server in enumerate(servers)]
    retry = f"    option redispatch 1\n    retry-on {settings['RAY_SERVE_HAPROXY_RETRY_ON']}\n    balance roundrobin\n"
    return "backend application\n" + retry + "\n".join(lines) + "\n"


_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nhere"
_LOST = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_FRAME = b'data: {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}\n\n'
_CUT = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + f"{len(_FRAME):x}\r\n".encode()
    + _FRAME
    + b"\r\n"
)


@contextmanager
def _serving(config: Path, servers: list[_Dying]) -> Iterator[str]:
    port = free_port()
    config.write_text(_EMPTY.format(port=port, more="use_backend application") + _backend(servers))
    with _haproxy(config):
        yield f"http://127.0.0.1:{port}"


def test_what_a_replica_has_not_answered_when_it_dies_is_asked_of_another(tmp_path: Path) -> None:
    with _replicas(b"", _WHOLE) as servers, _serving(tmp_path / "haproxy.cfg", servers) as url:
        _answer(url)
        with httpx.Client(trust_env=False) as client:
            answers = [client.post(url, json={"stream": False}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert servers[0].asked >= 1, "nobody asked the one that dies"


def test_what_a_replica_whose_engine_is_lost_refuses_is_asked_of_another(tmp_path: Path) -> None:
    with _replicas(_LOST, _WHOLE) as servers, _serving(tmp_path / "haproxy.cfg", servers) as url:
        _answer(url)
        with httpx.Client(trust_env=False) as client:
            answers = [client.post(url, json={"stream": False}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert servers[0].asked >= 1, "nobody asked the one without an engine"


def test_where_no_process_is_left_the_answer_says_when_to_ask_again(tmp_path: Path) -> None:
    as_serve_has_it = tmp_path / "500.http"
    as_serve_has_it.write_bytes(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
    port, nobody = free_port(), free_port()
    config = tmp_path / "haproxy.cfg"
    files = "".join(f"    errorfile {code} {as_serve_has_it}\n" for code in (502, 503, 504))
    text = _EMPTY.format(port=port, more="use_backend application").replace("frontend http", f"{files}frontend http", 1)
    config.write_text(f"{text}backend application\n    server s0 127.0.0.1:{nobody}\n")
    with _haproxy(config):
        response = _answer(f"http://127.0.0.1:{port}")
    assert (response.status_code, response.headers["retry-after"]) == (503, "10")
    assert response.json()["error"]["code"] == "unavailable"
    config.write_text(config.read_text().replace(str(nobody), str(free_port())))
    with _haproxy(config), httpx.Client(trust_env=False) as client:
        _answer(f"http://127.0.0.1:{port}")
        said = client.post(f"http://127.0.0.1:{port}/v1/vector_stores", json={})
    assert (said.status_code, said.headers["retry-after"]) == (503, "10"), "a second start must leave it as it is"


def test_a_stream_whose_replica_dies_raises_in_httpx_and_in_the_official_client(tmp_path: Path) -> None:
    with _replicas(_CUT) as servers, _serving(tmp_path / "haproxy.cfg", servers) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            _answer(url)
        client = OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, http_client=httpx.Client(trust_env=False))
        stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        with pytest.raises((httpx.RemoteProtocolError, APIConnectionError)):
            list(stream)


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
    assert response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "starting"


@pytest.mark.parametrize(("path", "status"), [("/known", 200), ("/unknown", 404)])
def test_one_that_knows_applications_answers_as_serve_has_it(tmp_path: Path, path: str, status: int) -> None:
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(_EMPTY.format(port=port, more=_APPLICATION) + _BACKEND)
    with _haproxy(config):
        assert _answer(f"http://127.0.0.1:{port}{path}").status_code == status


def test_what_is_set_already_stays() -> None:
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": "/opt/haproxy", "RAY_SERVE_HAPROXY_RETRY_ON": "none"}
    prepare(environment)
    assert environment["RAY_SERVE_HAPROXY_BINARY_PATH"] == "/opt/haproxy"
    assert environment["RAY_SERVE_HAPROXY_RETRY_ON"] == "none"
