"""The environment of every process of ours: offline, no usage statistics, direct streaming."""

import os
import socket
from collections.abc import MutableMapping


def offline_environment() -> dict[str, str]:
    """Nothing reaches a model hub, nothing reports usage."""
    return {
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make this process and its children ready for Ray Serve LLM's direct streaming, before Ray is imported.

    What is set already stays.
    """
    defaults = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        **offline_environment(),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        # Fixed by default, so that a second server on this machine would collide; a cluster's pods set them.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        # Where requests wait while nothing serves.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rag_stack.serving.proxy_room.middlewares",
        # A new replica is marked up after two checks; five seconds apart they would be most of a short start.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # Each change of the replicas makes HAProxy begin anew, and what the old one carries is cut off so long after:
        # 120 s by default, less than an answer may take.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "900",
        # Thirty seconds by default, which a server on a laptop would spend at every Ctrl-C.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    for name, value in defaults.items():
        environ.setdefault(name, value)


def free_port() -> int:
    """A port of the loopback interface on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
