"""`rag-stack serve`: check all that can be checked without a replica, start, and say what each stage took."""

import importlib.util
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import Release
from rag_stack.errors import ConfigError, EngineMissingError, UnavailableError
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving import environment
from rag_stack.serving.opening import fetch, open_indexes
from rag_stack.serving.pinning import PinnedRelease, pin
from rag_stack.serving.stages import Stage, StageClock

_NEEDED = ("ray", "vllm", "faiss", "torch", "sentence_transformers")


class Server:
    """A local Ray with the release's applications on it, until `stop`."""

    def __init__(self, stages: tuple[Stage, ...], replica_stages: tuple[Stage, ...], url: str, metrics: str) -> None:
        self.stages = stages
        self.replica_stages = replica_stages
        self.url = url
        self.metrics = metrics

    def stop(self) -> None:
        """Drain the applications and end this Ray."""
        _shut_down()


def start(release: Release, *, tell: Callable[[str], None]) -> Server:
    """Start everything and return when questions are answered. Blocking: a minute on a CPU.

    Raises EngineMissingError, ConfigError, ArtifactError or IndexVersionError before Ray starts, UnavailableError
    when an application does not come up.
    """
    require_engine()
    require_port(release)
    environment.prepare()
    clock = StageClock(MemoryRecorder())
    with clock.time("total"):
        tell("checking artifacts")
        tiers = open_tiers(release.artifacts, MemoryRecorder())
        pinned = pin(release, tiers.catalog)
        model_directory = preflight(pinned, tiers, clock=clock)
        tell("importing Ray and vLLM")
        with clock.time("import Ray and vLLM"):
            _check_engine(pinned.release)
        try:
            tell("starting Ray")
            with clock.time("start Ray"):
                metrics = _start_ray(pinned.release)
            tell("starting the engine and the index (this takes a while)")
            with clock.time("start applications"):
                replica_stages = _run(pinned, model_directory)
        except BaseException:
            _shut_down()
            raise
    url = f"http://{pinned.release.server.host}:{pinned.release.server.port}"
    return Server(clock.stages(), replica_stages, url, metrics)


def require_engine() -> None:
    """Raise EngineMissingError, with the command to run, unless the server's extras are installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineMissingError(
            f"the server needs {', '.join(missing)}, which this environment lacks: run `make setup` in a checkout of "
            "rag_stack (CPU), or `pip install 'rag-stack[gpu]'` on a machine with NVIDIA GPUs"
        )


def require_port(release: Release) -> None:
    """Raise ConfigError when something else already listens where the release wants to serve."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((release.server.host, release.server.port))
        except OSError as exc:
            raise ConfigError(
                f"cannot listen on {release.server.host}:{release.server.port}: {exc.strerror}; stop what is there or "
                "choose another one with --port"
            ) from exc


def preflight(pinned: PinnedRelease, tiers: Tiers, *, clock: StageClock) -> Path:
    """Bring all artifacts here and open every index once; returns the model's directory.

    What is wrong with them is said here, in one line, and not in a replica's log.
    """
    release = pinned.release
    model = fetch(tiers, "models", release.model.name, release.model.version, clock=clock)
    embedder = fetch(tiers, "models", release.embedder.name, release.embedder.version, clock=clock)
    open_indexes(release, tiers, embedder_digest=embedder.manifest.digest, clock=clock)
    return model.path


def _check_engine(release: Release) -> None:
    import rag_stack.serving.app  # noqa: F401 - the slow import of the start, timed here
    from rag_stack.generation.engine_settings import check_engine_settings, vllm_fields

    check_engine_settings(release.engine, fields=vllm_fields())
    for library in (
        "ray",
        "ray.serve",
        "httpx",
        "httpx2",
    ):  # what they tell at each start is in the session's own log files
        logging.getLogger(library).setLevel(logging.WARNING)


def _start_ray(release: Release) -> str:
    """Start a Ray of our own; returns the address of its Prometheus port."""
    import ray
    from ray import serve

    port = environment.free_port()
    ray.init(
        address="local",
        # One CPU is for the replica and one for the engine's worker, also on a machine that has a single core.
        num_cpus=max(2, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=bool(os.environ.get("RAG_STACK_RAY_LOGS")),
        logging_level="WARNING",
        _metrics_export_port=port,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": release.server.host, "port": release.server.port})
    return f"http://127.0.0.1:{port}/metrics"


def _run(pinned: PinnedRelease, model_directory: Path) -> tuple[Stage, ...]:
    from ray import serve

    from rag_stack.serving.app import build_targets
    from rag_stack.serving.control import ENGINE_APP

    try:
        serve.run_many(build_targets(pinned, model_directory=model_directory))
    except RuntimeError as exc:
        failed = {
            name: app.message for name, app in serve.status().applications.items() if "FAILED" in app.status.value
        }
        raise UnavailableError(f"an application did not start: {failed or exc}") from exc
    report = serve.get_app_handle(ENGINE_APP).start_report.remote().result()
    return tuple(Stage(**stage) for stage in report)


def _shut_down() -> None:
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
