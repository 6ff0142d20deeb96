"""Serve's own controller asks the release's policy, which hears of the work that replicas report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import time
import ray
from ray import serve
from rag_stack.config import Release
from rag_stack.serving.deployment import engine_options

RELEASE = Release.model_validate({
    "name": "r", "model": {"name": "m"}, "embedder": {"name": "e"},
    "scaling": {"max_replicas": 3, "requests_per_replica": 4, "down_after_s": 2}, "rollout": {"surge": 1},
})

class Reporting:
    def __init__(self) -> None:
        self.stats = {"running": 0.0}

    def report(self, **stats: float) -> None:
        self.stats = stats

    def record_autoscaling_stats(self) -> dict[str, float]:
        return self.stats

def target() -> int:
    deployment = serve.status().applications["default"].deployments["Reporting"]
    return sum(count for state, count in deployment.replica_states.items() if state in ("STARTING", "RUNNING"))

def until(count: int, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while target() != count:
        assert time.monotonic() < deadline, f"expected {count} replicas, got {target()}"
        time.sleep(0.2)

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
options = engine_options(RELEASE, load_s=3.0)
del options["request_router_config"]
app = serve.deployment(Reporting, ray_actor_options={"num_cpus": 0}, **options).bind()
handle = serve.run(app, route_prefix=None)
until(1, 60)
# Eight requests at once are two replicas' work. Serve itself sees none: they come past its handles.
handle.report.remote(running=4.0, waiting=4.0).result()
until(2, 120)
print("scaled up", flush=True)
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_serve_s_controller_follows_the_policy(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    root = str(Path(__file__).parents[2])
    environment |= {"PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0"}
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=280)
    assert "scaled up" in done.stdout, done.stderr[-3000:]
