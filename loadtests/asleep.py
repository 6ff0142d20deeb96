"""A release deployed with no replica of its engine: what a wake begins with. `python -m loadtests.asleep`.

It prints a line of JSON once requests are taken, and with a standby once that is ready, and serves until SIGTERM or
Ctrl-C.
"""

import argparse
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release, load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving import environment

_STANDBY_S = 600.0
_LOOK_S = 0.25


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fork", choices=("true", "false"), default="true", help="fork the engine's processes")
    parser.add_argument("--standby", action="store_true", help="keep one")
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(stopped))
    environment.prepare()
    release = asleep(load_release(options.release), fork=options.fork == "true", standby=options.standby)
    import ray
    from ray import serve

    try:
        deploy(release, port=options.port)
        state = wait_for_standby(release) if options.standby else {}
        print(json.dumps({"asleep": True, "standby": state}), flush=True)
        stopped.wait()
    except KeyboardInterrupt:
        pass
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


def _interrupt(stopped: threading.Event) -> None:
    """During the start, a signal must break it off; once serving, it ends the wait."""
    stopped.set()
    raise KeyboardInterrupt


def asleep(release: Release, *, fork: bool, standby: bool) -> Release:
    """The release as it is measured: no replica until there is a request."""
    scaling = release.scaling.model_copy(update={"min_replicas": 0, "max_replicas": 1})
    wake = release.wake.model_copy(update={"fork": fork, "standby": standby})
    return release.model_copy(update={"scaling": scaling, "wake": wake})


def deploy(release: Release, *, port: int) -> None:
    """All applications of the release on a Ray of this process."""
    import ray
    from ray import serve

    from rag_stack.releases.pinned import pin
    from rag_stack.serving.app import build_targets
    from rag_stack.serving.startup import preflight
    from rag_stack.timeline import Timeline

    tiers = open_tiers(release.artifacts, MemoryRecorder())
    pinned = pin(release, tiers)
    preflight(pinned, tiers, timeline=Timeline())
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        _metrics_export_port=environment.free_port(),
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run_many(build_targets(pinned))


def wait_for_standby(release: Release) -> dict[str, Any]:
    """What it says of itself, once it is ready. Raises TimeoutError."""
    import ray

    from rag_stack.serving.wake.runtime import standby_name
    from rag_stack.serving.wake.standby import NAMESPACE

    deadline_s = time.monotonic() + _STANDBY_S
    name = standby_name(ray.get_runtime_context().get_node_id(), release)
    while time.monotonic() < deadline_s:
        try:
            state = ray.get(ray.get_actor(name, namespace=NAMESPACE).state.remote(), timeout=10)
        except (ValueError, ray.exceptions.RayError):
            state = {}
        if state.get("ready"):
            return dict(state)
        time.sleep(_LOOK_S)
    raise TimeoutError(f"{name} was not ready after {_STANDBY_S:.0f} s")


if __name__ == "__main__":
    main()
