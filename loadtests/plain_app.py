"""Ray Serve LLM in direct streaming mode as it comes, without our layer: the middle arm of `loadtests.overhead`.

`python -m loadtests.plain_app --release releases/demo.yaml --port 8000` serves the release's model with its engine
settings and environment until SIGTERM.
"""

import argparse
import os
import signal
import threading
from pathlib import Path

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release, load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving import environment


def model_directory(release: Release) -> Path:
    """The release's weights on this node, fetched if need be. Raises an ArtifactError."""
    tiers = open_tiers(release.artifacts, MemoryRecorder())
    manifest = tiers.catalog.resolve("models", release.model.name, release.model.version)
    return tiers.ensure_local(manifest).path.absolute()


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(stopped))
    environment.prepare()
    # Our waiting room in Serve's proxy asks our control applications, and here are none.
    os.environ.pop("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", None)
    release = load_release(options.release)
    try:
        _start(release, model_directory(release), port=options.port)
        print("ready", flush=True)
        stopped.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _shut_down()


def _start(release: Release, weights: Path, *, port: int) -> None:
    """One application, built as ours is, but with Ray's own server class and callbacks."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    from rag_stack.generation.engine_settings import on_this_node
    from rag_stack.serving.app import hardware

    config = LLMConfig(
        model_loading_config={"model_id": release.model.name, "model_source": str(weights)},
        engine_kwargs=on_this_node(release.engine),
        runtime_env={"env_vars": {**environment.offline_environment(), **release.engine_env}},
        **hardware(release),
    )
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        _metrics_export_port=environment.free_port(),
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app({"llm_configs": [config]}), name="engine", route_prefix="/")


def _interrupt(stopped: threading.Event) -> None:
    """During the start, a signal must break it off; once serving, it ends the wait."""
    stopped.set()
    raise KeyboardInterrupt


def _shut_down() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
