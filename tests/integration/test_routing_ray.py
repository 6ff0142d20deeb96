"""HAProxy, the router that it asks, and three light replicas: the router sees bodies; one subject goes one way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import json
import os
import time

from rag_stack.serving.environment import free_port, prepare

prepare()
import httpx
import ray
from ray import serve
from ray._private import services
from ray.cluster_utils import Cluster
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from loadtests.local_cluster import patiently
from rag_stack.config import Release
from rag_stack.serving.deployment import router_config, with_router
from rag_stack.serving.rollout.choice import Split, Standing
from rag_stack.serving.routing.balance import Work

RELEASE = Release.model_validate({"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}})

class Light:
    def __init__(self) -> None:
        self.arrived = 0

    async def __serve_build_asgi_app__(self):
        async def answer(request):
            self.arrived += 1
            return JSONResponse({"pid": os.getpid(), "size": len(await request.body())})
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
    request_router_config=router_config(RELEASE).model_copy(update={"request_routing_stats_period_s": 0.1}),
)
serve.run(with_router(light.bind()), name="engine", route_prefix="/")
url = f"http://127.0.0.1:{port}/v1/chat/completions"
client = httpx.Client(timeout=30, trust_env=False)

PAUSE_S = 1.5  # reports come each tenth of a second here, and only they tell the router what has been answered

def ask(text="", *, body=None, **more):
    headers, pause_s = more.pop("headers", {}), more.pop("pause_s", 0.0)
    if body is None:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()
    answer = client.post(url, content=body, headers={"content-type": "application/json", **headers})
    assert answer.status_code == 200, (answer.status_code, answer.text)
    assert answer.json()["size"] == len(body)
    time.sleep(pause_s)
    return answer.json()["pid"]

deadline = time.monotonic() + 60
while True:
    # Until all have reported, and HAProxy knows them.
    try:
        if len({ask(headers={"x-session-id": f"s{n}"}) for n in range(24)}) == 3:
            break
    except (AssertionError, httpx.TransportError):
        pass
    assert time.monotonic() < deadline, "three replicas are not up"
    time.sleep(0.5)

time.sleep(PAUSE_S)
# A key that the client gives: always one way, and not all keys the same way.
keys = {n: {ask(f"{n} {turn}", prompt_cache_key=f"key {n}", pause_s=PAUSE_S) for turn in range(2)} for n in range(8)}
# The words of questions, asked in other words each time.
topics = {
    n: {ask(f"{opening} {words}?", pause_s=PAUSE_S) for opening in ("What is", "Tell me more on", "Why use")}
    for n, words in enumerate(("context managers", "asyncio event loops", "struct packing", "regular expressions"))
}
odd = [b"", b"not json", b"[" * 50_000, b"x" * 200_000, b"{}", bytes(range(256))]
large = json.dumps({"messages": [{"role": "user", "content": "context managers"}], "pad": "x" * 3_000_000}).encode()
print(json.dumps({
    "keys": [len(found) for found in keys.values()],
    "placed": len(set().union(*keys.values())) > 1,
    "topics": [len(found) for found in topics.values()],
    "odd": len([ask(body=body) for body in odd]),
    "large": len({ask(body=large, pause_s=PAUSE_S) for _ in range(3)}),
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
    }
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray may print behind it what has come to an end.
    seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"keys"')))
    assert seen == {"keys": [1] * 8, "placed": True, "topics": [1] * 4, "odd": 6, "large": 1, "session": 1}
    assert "Could not derive a routing key" not in done.stdout + done.stderr
