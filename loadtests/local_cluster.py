"""A Ray cluster of several raylets on this machine, with the release's applications on it and a scripted engine.

Everything but the engine is as it is served: HAProxy, routers, replicas in processes of their own, node caches of their
own. The driver is this process.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from loadtests.scripted_engine import Script
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.serving import environment
from rag_stack.serving.environment import free_port

_PLASMA_BYTES = 128 << 20
_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
_NODE_START_S = 240.0


@dataclass
class LocalCluster:
    """The cluster; `url` is where it answers. `nodes` are Ray's handles, the head first."""

    cluster: Any
    directory: Path
    url: str
    pinned: PinnedRelease
    nodes: list[Any] = field(default_factory=list)
    num_cpus: float = 2
    caches: list[Path] = field(default_factory=list)
    _cache: dict[int, Path] = field(default_factory=dict)

    def grow(self, **settings: Any) -> Any:  # noqa: ANN401 - Ray's handle of a node is untyped
        """One more node, with a cache of its own; `num_cpus` and `environment` of it if they are not the others'."""
        self.caches.append(self.directory / f"cache{len(self.caches)}")
        asked = {"num_cpus": self.num_cpus, **settings}
        node = self.cluster.add_node(**_settings(self.caches[-1], **asked))
        self.nodes.append(node)
        self._cache[id(node)] = self.caches[-1]
        return node

    def cache_of(self, node: Any) -> Path:  # noqa: ANN401
        """Where a node keeps its artifacts."""
        return self._cache[id(node)]

    def kill(self, node: Any) -> None:  # noqa: ANN401
        """The node dies at once, with its processes; its cache stays on the disk unless the caller removes it."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)


@contextmanager
def started(
    release: Release,
    directory: Path,
    *,
    script: Script,
    nodes: int = 1,
    num_cpus: float = 2,
    variables: Mapping[str, str] | None = None,
    head_cpus: float | None = None,
    replica_cpus: float = 0.5,
    head_settings: Mapping[str, Any] | None = None,
    proxies: Literal["HeadOnly", "EveryNode"] = "HeadOnly",
) -> Iterator[LocalCluster]:
    """Serve the release with a scripted engine on so many nodes, one replica's CPUs each unless told otherwise.

    With a HAProxy on every node, all listen at one port, and the kernel spreads connections over those that live; so
    a load balancer spreads them over the nodes of a real cluster. Blocking: half a minute. The environment of this
    process is changed; Ray must not have been imported before.
    """
    # A directory with a short name: the path of a socket in it must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as ray_directory:
        environment.prepare()
        repository = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (repository, os.environ.get("PYTHONPATH", ""))))
        os.environ.update({"RAY_TMPDIR": ray_directory, "PYTHONPATH": path, **(variables or {})})
        if proxies == "EveryNode":
            os.environ["SERVE_SOCKET_REUSE_PORT_ENABLED"] = "1"
        os.environ.pop("RAY_ADDRESS", None)
        import ray
        from ray import serve
        from ray._private import services, utils
        from ray.cluster_utils import Cluster

        from loadtests.scripted_server import scripted_target
        from rag_stack.serving.control_apps import control_targets

        services.get_node = patiently(services.get_node)
        utils.set_sigterm_handler = _of_main_thread(utils.set_sigterm_handler)
        pinned = pin(release, open_tiers(release.artifacts, MemoryRecorder()))
        caches = [directory / "cache0"]
        head = {
            **_settings(caches[0], num_cpus=num_cpus if head_cpus is None else head_cpus),
            "include_dashboard": False,
            "include_log_monitor": False,
            **(head_settings or {}),
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        url = f"http://127.0.0.1:{release.server.port}"
        local = LocalCluster(cluster, directory, url, pinned, [cluster.head_node], num_cpus, caches)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            for _ in range(nodes - 1):
                local.grow()
            serve.start(proxy_location=proxies, http_options={"host": "127.0.0.1", "port": release.server.port})
            serve.run_many([scripted_target(pinned, script, num_cpus=replica_cpus), *control_targets(pinned)])
            yield local
        finally:
            if ray.is_initialized():
                serve.shutdown()
                ray.shutdown()
            cluster.shutdown()


def ask(url: str, question: str, *, model: str, max_tokens: int = 8, timeout_s: float = 60.0) -> httpx.Response:
    """One chat, whole."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=timeout_s)


def patiently(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a node thirty seconds to register, which one on a machine with too much to do does not make."""

    def got(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as Ray has it
        until_s = time.monotonic() + _NODE_START_S
        while True:
            try:
                return get_node(*arguments, **named)
            except RuntimeError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.2)

    return got


def _of_main_thread(set_handler: Callable[..., None]) -> Callable[..., None]:
    """A node may be added by another thread, beside a load that runs; only the main one may set signal handlers."""

    def set_there(*arguments: Any) -> None:  # noqa: ANN401 - as Ray has it
        if threading.current_thread() is threading.main_thread():
            set_handler(*arguments)

    return set_there


def _settings(cache: Path, *, num_cpus: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "num_cpus": num_cpus,
        "object_store_memory": _PLASMA_BYTES,
        "env_vars": {"RAG_STACK_CACHE": str(cache), **(environment or {})},
        # A raylet gives its agents fifteen seconds to find ports by themselves, and dies: too few on a busy machine.
        **{port: free_port() for port in _PORTS},
    }
