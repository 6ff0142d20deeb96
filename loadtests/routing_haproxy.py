"""What forwarding a body to the router costs, by its size: Serve's own HAProxy file, and a router that does our work.

Ray is not there: one process is the router, with what ours does for a request, and one the replica, which reads the
body and says nothing. What differs between the arms is HAProxy's file, made as Serve makes it.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from rag_stack.serving.environment import free_port, prepare

# off: what was before; on: as shipped; whole: with the buffer that Ray takes by default.
ARMS: Final[Mapping[str, Mapping[str, str]]] = {
    "off": {"RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "0"},
    "on": {"RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1"},
    "whole": {
        "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
        "RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE": str(8 << 20),
    },
}
SIZES: Final = (1 << 10, 16 << 10, 60 << 10, 256 << 10, 1 << 20, 4 << 20)
_UP_S: Final = 60.0

_ROUTER = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from rag_stack.serving.routing.affinity import Affinity
from rag_stack.serving.routing.balance import Work
from rag_stack.serving.routing.subject import subject_of
affinity = Affinity()
affinity.learn({"r0": Work(), "r1": Work()})
async def route(request):
    affinity.order(("r0", "r1"), subject_of(await request.body()))
    return JSONResponse({"host": "127.0.0.1", "port": 1, "replica_id": "r0"})
async def answer(request):
    return JSONResponse({"size": len(await request.body())})
routes = [Route("/internal/route", route, methods=["POST"]), Route("/{rest:path}", answer, methods=["POST", "GET"])]
uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""
_FILE = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
folder, port, replica, router = sys.argv[1], *map(int, sys.argv[2:])
def server(name, port):
    return ServerConfig(name=name, host="127.0.0.1", port=port, replica_id=name)
backend = BackendConfig(name="http-engine", path_prefix="/", app_name="engine", servers=[server("r0", replica)],
    ingress_request_router_servers=[server("router", router)])
config = HAProxyConfig(socket_path=f"{folder}/admin.sock", metrics_socket_path=f"{folder}/metrics.sock")
config.http_options.port, config.http_options.host = port, "127.0.0.1"
HAProxyApi(config, {"http-engine": backend}, config_file_path=f"{folder}/haproxy.cfg")._generate_config_file_internal()
"""


@dataclass(frozen=True, slots=True)
class Behind:
    """A HAProxy with one replica and one router behind it."""

    url: str
    haproxy: psutil.Process
    router: psutil.Process

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of HAProxy and of the router so far."""
        return _cpu_s(self.haproxy), _cpu_s(self.router)


@contextmanager
def behind_haproxy(arm: str) -> Iterator[Behind]:
    """Start all three for an arm, and end them."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | dict(ARMS[arm])
    prepare(environment)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="ha-") as folder, ExitStack() as stack:
        port, replica_port, router_port = free_port(), free_port(), free_port()
        ports = [str(port), str(replica_port), str(router_port)]
        subprocess.run([sys.executable, "-c", _FILE, folder, *ports], env=environment, check=True)
        for each in (replica_port, router_port):
            router = stack.enter_context(_running([sys.executable, "-c", _ROUTER, str(each)], environment))
        command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", f"{folder}/haproxy.cfg"]
        haproxy = stack.enter_context(_running(command, environment))
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        _until_up(url)
        yield Behind(url, haproxy, router)


def measure(behind: Behind, *, size: int, requests: int) -> dict[str, float]:
    """The median time of a request with a body of so many bytes, and CPU milliseconds that one took."""
    body = body_of_size(size)
    times_s = []
    with httpx.Client(trust_env=False, timeout=30.0) as client:
        client.post(behind.url, content=body)
        before = behind.cpu_s()
        for _ in range(requests):
            began_s = time.perf_counter()
            answer = client.post(behind.url, content=body)
            times_s.append(time.perf_counter() - began_s)
            if answer.status_code != 200 or answer.json()["size"] != len(body):
                raise RuntimeError(f"{answer.status_code} for {size} bytes: {answer.text[:200]}")
        after = behind.cpu_s()
    haproxy_s, router_s = (end - begin for begin, end in zip(before, after, strict=True))
    return {
        "ms": 1e3 * sorted(times_s)[len(times_s) // 2],
        "haproxy_cpu_ms": 1e3 * haproxy_s / requests,
        "router_cpu_ms": 1e3 * router_s / requests,
        "haproxy_mib": behind.haproxy.memory_info().rss / 2**20,
    }


def body_of_size(size: int) -> bytes:
    """A chat of about so many bytes: a question first, as a conversation has it, and then what makes it long."""
    question: dict[str, Any] = {"role": "user", "content": "How do I open a context manager in a generator?"}
    body: dict[str, Any] = {"model": "m", "messages": [question, {"role": "assistant", "content": ""}]}
    body["messages"][1]["content"] = "lorem ipsum " * max(0, (size - len(json.dumps(body))) // 12)
    return json.dumps(body).encode()


@contextmanager
def _running(command: list[str], environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    process = subprocess.Popen(command, env=dict(environment), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait(10)


def _until_up(url: str) -> None:
    until_s, pause = time.monotonic() + _UP_S, threading.Event()
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while True:
            try:
                if client.post(url, content=b"{}").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > until_s:
                raise RuntimeError(f"HAProxy and what is behind it do not answer at {url} within {_UP_S:.0f} s")
            pause.wait(0.2)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
