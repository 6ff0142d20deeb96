"""The control applications of a release without its engine, on a Ray of their own: `python -m tests.control_app`.

Serves `--release` on `--port` until SIGTERM, and says `ready` once it does.
"""

import argparse
import os
import signal
import threading
from pathlib import Path

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.serving import environment


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    # Not `prepare`: HAProxy asks the engine's router before each POST, and there is none.
    os.environ.update(environment.offline_environment())
    release = load_release(options.release)
    pinned = pin(release, open_tiers(release.artifacts, MemoryRecorder()))
    import ray
    from ray import serve

    from rag_stack.serving.control_apps import control_targets

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        _metrics_export_port=environment.free_port(),
    )
    # Ray has put its own in the place of ours.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": options.port})
        serve.run_many(control_targets(pinned))
        print("ready", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
