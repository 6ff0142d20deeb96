"""The control applications of a release without its engine: search, administration, readiness, on a Ray of their own.

`python -m loadtests.swap_app --release FILE --port 8000` serves until SIGTERM.
"""

import argparse
import os
import signal
import threading
from pathlib import Path

from loadtests.plain_app import _interrupt, _shut_down
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.serving import environment


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(stopped))
    # Not `prepare`: HAProxy asks the engine's router before each POST, and there is none.
    os.environ.update(environment.offline_environment())
    release = load_release(options.release)
    try:
        _start(pin(release, open_tiers(release.artifacts, MemoryRecorder())), port=options.port)
        print("ready", flush=True)
        stopped.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _shut_down()


def _start(pinned: PinnedRelease, *, port: int) -> None:
    import ray
    from ray import serve

    from rag_stack.serving.control_apps import control_targets

    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        _metrics_export_port=environment.free_port(),
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run_many(control_targets(pinned))


if __name__ == "__main__":
    main()
