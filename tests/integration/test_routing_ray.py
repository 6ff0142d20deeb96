"""HAProxy, the router that it asks, and three light replicas: the router sees bodies; one subject goes one way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.told_router import FOLDER

_PROGRAM = """
import json
import os
import time
from pathlib import Path

from rag_stack.serving.environment import free_port, prepare

prepare()
import httpx
import ray
from ray import serve
from ray._private import services
from ray.cluster_utils import Cluster
from ray.serve.config import RequestRouterConfig
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from loadtests.local_cluster import patiently
from rag_stack.serving.deployment import with_router
from rag_stack.serving.rollout.choice import Split, Standing
from rag_stack.serving.routing.balance import Work
from tests.told_router import FOLDER, ToldRouter, heard

class Light:
    def __init__(self) -> None:
        self.arrived = 0

    async def __serve_build_asgi_app__(self):
        async def answer(request):
            self.arrived += 1
            arrived = self.arrived
            return JSONResponse({"pid": os.getpid(), "arrived": arrived, "size": len(await request.body())})
        return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])

    async def record_routing_stats(self):
        return Standing("v1", True, Split(), Work(0, self.arrived)).to_stats()

services.get_node = patiently(services.get_node)
# A raylet gives its agents fifteen seconds to find ports by themselves, and dies: too few on a busy machine.
ports = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
head = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False, "include_log_monitor": False}
cluster = Cluster(initialize_head=True, head_node_args={**head, **{name: free_port() for name in ports}})
ray.init(address=cluster.address, log_to_driver=False)
port = free_port()
serve.start(http_options={"host": "127.0.0.1", "port": port})
light = serve.deployment(
    serve.ingress()(Light), num_replicas=3, ray_actor_options={"num_cpus": 0},
    request_router_config=RequestRouterConfig(
        request_router_class=f"{ToldRouter.__module__}.{ToldRouter.__name__}", request_routing_stats_period_s=0.1
    ),
)
serve.run(with_router(light.bind()), name="engine", route_prefix="/")
url = f"http://127.0.0.1:{port}/v1/chat/completions"
client = httpx.Client(timeout=30, trust_env=False)

arrived = {}

def ask(text="", *, body=None, **more):
    headers = more.pop("headers", {})
    if body is None:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()
    answer = client.post(url, content=body, headers={"content-type": "application/json", **headers})
    assert answer.status_code == 200, (answer.status_code, answer.text)
    assert answer.json()["size"] == len(body)
    pid = answer.json()["pid"]
    arrived[pid] = answer.json()["arrived"]
    return pid

def ask_idle(text="", **more):
    # When the routers have heard that all is answered: until then load counts too.
    until = time.monotonic() + 30
    while any(count != sum(arrived.values()) for count in heard(Path(os.environ[FOLDER]))):
        assert time.monotonic() < until, (heard(Path(os.environ[FOLDER])), arrived)
        time.sleep(0.01)
    return ask(text, **more)

deadline = time.monotonic() + 60
while True:
    # Until HAProxy knows all of them, and the router that it asks: without one it balances by itself.
    try:
        if len({ask(headers={"x-session-id": f"s{n}"}) for n in range(24)}) == 3 and heard(Path(os.environ[FOLDER])):
            break
    except (AssertionError, httpx.TransportError):
        pass
    assert time.monotonic() < deadline, "three replicas and their router are not up"
    time.sleep(0.5)

# A key that the client gives: always one way, and not all keys the same way.
keys = {n: {ask_idle(f"{n} {turn}", prompt_cache_key=f"key {n}") for turn in range(2)} for n in range(8)}
# The words of questions, asked in other words each time.
topics = {
    n: {ask_idle(f"{opening} {words}?") for opening in ("What is", "Tell me more on", "Why use")}
    for n, words in enumerate(("context managers", "asyncio event loops", "struct packing", "regular expressions"))
}
odd = [b"", b"not json", b"[" * 50_000, b"x" * 200_000, b"{}", bytes(range(256))]
large = json.dumps({"messages": [{"role": "user", "content": "context managers"}], "pad": "x" * 3_000_000}).encode()
print(json.dumps({
    "keys": [len(found) for found in keys.values()],
    "placed": len(set().union(*keys.values())) > 1,
    "topics": [len(found) for found in topics.values()],
    "odd": len([ask(body=body) for body in odd]),
    "large": len({ask_idle(body=large) for _ in range(3)}),
    "session": len({ask(f"what of {n}", headers={"x-session-id": "one"}) for n in range(6)}),
}), flush=True)
serve.shutdown()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_the_same_subject_goes_to_the_same_replica(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAG_STACK_"))}
    root = str(Path(__file__).parents[2])
    environment |= {
        "PYTHONPATH": root,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",
        "RAY_worker_niceness": "0",
        FOLDER: str(tmp_path / "told"),
    }
    (tmp_path / "told").mkdir()
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray may print behind it what has come to an end.
    seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"keys"')))
    assert seen == {"keys": [1] * 8, "placed": True, "topics": [1] * 4, "odd": 6, "large": 1, "session": 1}
    assert "Could not derive a routing key" not in done.stdout + done.stderr
