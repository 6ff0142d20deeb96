"""`rag-stack serve`: check all that can be checked without a replica, start, and say what each stage took."""

import importlib.util
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import Release
from rag_stack.errors import ArtifactError, ConfigError, EngineMissingError, UnavailableError
from rag_stack.generation.weights import check_files
from rag_stack.index.format import IndexMetadata
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.rollout import Rollout
from rag_stack.serving import environment
from rag_stack.serving.opening import fetch_model, open_indexes, open_reranker
from rag_stack.serving.replica_memory import replica_budget
from rag_stack.serving.size import worker_size
from rag_stack.serving.start_report import StartReport
from rag_stack.serving.wake.runtime import platform
from rag_stack.timeline import Timeline, process_start

_NEEDED = ("ray", "vllm", "faiss", "torch", "onnxruntime", "bm25s", "Stemmer")
_COMMAND = "command"
_LOOK_S = 0.2
# What a replica takes to end beside its answers.
_END_S = 10.0
_LOG = logging.getLogger(__name__)


class Server:
    """A local Ray with the release's applications on it, until `stop`."""

    def __init__(self, report: StartReport, url: str, metrics: str, *, drain_s: float, notice: str = "") -> None:
        self.report = report
        self.url = url
        self.metrics = metrics
        self.drain_s = drain_s
        self.notice = notice

    def stop(self) -> None:
        """Let running answers finish, for `drain_s` at most, and end this Ray. Another Ctrl-C ends it at once."""
        try:
            drain(self.drain_s)
        except KeyboardInterrupt:
            _LOG.warning("answers under way are broken off")
        finally:
            _shut_down()


def start(release: Release, *, tell: Callable[[str], None]) -> Server:
    """Start everything and return when questions are answered. Blocking: a minute on a CPU.

    Raises EngineMissingError, ConfigError, MemoryBudgetError (not all of it fits in memory), ArtifactError,
    IndexVersionError or IncompatibleReleaseError before Ray starts, UnavailableError when an application does not come
    up.
    """
    started_s = process_start(os.getpid())
    timeline = Timeline(process=_COMMAND)
    timeline.add("import rag_stack", started_s, time.time())
    require_engine()
    require_port(release)
    environment.prepare()
    tell("checking artifacts")
    with timeline.time("resolve versions"):
        tiers = open_tiers(release.artifacts, MemoryRecorder())
        pinned = pin(release, tiers)
        replica_budget(pinned.release, tiers, worker_size()).check()
    preflight(pinned, tiers, timeline=timeline)
    notice = "; ".join(filter(None, (make_current(pinned, tiers), without_words(pinned.release, tiers))))
    tell("importing Ray and vLLM")
    with timeline.time("import Ray and vLLM"):
        _check_engine(pinned.release)
    try:
        tell("starting Ray")
        with timeline.time("start Ray"):
            metrics = _start_ray(pinned.release)
        tell("starting the engine and the index (this takes a while)")
        report = _run(pinned, timeline=timeline, started_s=started_s)
    except BaseException:
        _shut_down()
        raise
    url = f"http://{pinned.release.server.host}:{pinned.release.server.port}"
    return Server(report, url, metrics, drain_s=pinned.release.drain.limit_s, notice=notice)


def drain(limit_s: float) -> None:
    """Take no more questions, and wait until those under way are answered, or the limit is over. Blocking.

    Serve's own shutdown ends HAProxy together with the replicas, and every answer with it: the engine goes first.
    """
    from ray import serve

    from rag_stack.serving.prefixes import ENGINE_APP

    until_s = time.monotonic() + limit_s + _END_S
    serve.delete(ENGINE_APP, _blocking=False)
    while ENGINE_APP in serve.status().applications and time.monotonic() < until_s:
        time.sleep(_LOOK_S)


def make_current(pinned: PinnedRelease, tiers: Tiers) -> str:
    """Have what the file pins be what this release's replicas take, and return what an operator should know of that.

    The file goes before what was rolled out to a server that ran earlier. Only a rollout from or to what the file says
    goes on where it was. A store that follows what is promoted makes no other release of the file when that moves.
    """
    name = pinned.release.name
    rollout = Rollout(tiers.catalog, name)
    try:
        plan = rollout.plan()
        if plan is not None and plan.new is not None and any(rollout.same(pinned, v) for v in (plan.old, plan.new)):
            return f"the rollout of {name} from {plan.old} to {plan.new} is {plan.state}, and goes on"
        applied = rollout.apply(pinned, restart=True, replacing=True, reason="rag-stack serve")
    except ArtifactError as exc:
        return f"releases cannot be rolled out: {exc.message}"
    if plan is None or applied.outcome == "unchanged":
        return ""
    back = f"`rag-stack release rollback {name}` goes back"
    return f"the file differs from what was served as {name} before ({plan.goal}) and takes its place; {back}"


def without_words(release: Release, tiers: Tiers) -> str:
    """What an operator should know of indexes that are asked for words and have none; empty where all have. Blocking.

    As those that a rag_stack built which did not index words.
    """
    if release.retrieval.mode == "dense":
        return ""
    manifests = [tiers.resolve("indexes", store.index, store.version, digest=store.digest) for store in release.stores]
    named = sorted({each.name for each in manifests if IndexMetadata.of(each).lexical is None})
    if not named:
        return ""
    have = "has" if len(named) == 1 else "have"
    return (
        f"{', '.join(named)} {have} no words, and questions find passages by vectors alone: `rag-stack index build` of "
        "their specs, without --if-missing, adds them (`retrieval: {mode: dense}` wants none)"
    )


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


def preflight(pinned: PinnedRelease, tiers: Tiers, *, timeline: Timeline) -> Path:
    """Bring all artifacts here and open every index once; returns the model's directory.

    What is wrong with them is said here, in one line, and not in a replica's log.
    """
    release = pinned.release
    model = fetch_model(tiers, release.model, timeline=timeline, check=check_files)
    embedder = fetch_model(tiers, release.embedder, timeline=timeline)
    digest = embedder.manifest.digest
    open_indexes(release, tiers, embedder_digest=digest, timeline=timeline, recorder=MemoryRecorder())
    open_reranker(release, tiers, timeline=timeline, recorder=MemoryRecorder())
    return model.path


def _check_engine(release: Release) -> None:
    import rag_stack.serving.app  # noqa: F401 - the slow import of the start, timed here
    from rag_stack.generation.engine_settings import check_engine_settings, check_loader, vllm_fields
    from rag_stack.generation.kv_settings import check_kv_settings, vllm_kv_names

    check_engine_settings(release.engine, fields=vllm_fields())
    check_kv_settings(release.engine, names=vllm_kv_names(), platform=platform(worker_size()))
    check_loader(release.engine)
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


def _run(pinned: PinnedRelease, *, timeline: Timeline, started_s: float) -> StartReport:
    """Deploy, and wait until everything runs. The report holds the replica's start and this command's around it."""
    from ray import serve

    from rag_stack.serving.app import build_targets
    from rag_stack.serving.prefixes import ENGINE_APP

    deployed_s = time.time()
    try:
        serve.run_many(build_targets(pinned))
    except RuntimeError as exc:
        raise UnavailableError(f"an application did not start: {_failures() or exc}") from exc
    if not pinned.release.scaling.min_replicas:  # the engine sleeps, and a question of ours would wake it
        ready_s = time.time()
        timeline.add("deploy applications", deployed_s, ready_s)
        return StartReport(started_s, ready_s, tuple(timeline.spans()))
    replica = StartReport.from_wire(serve.get_app_handle(ENGINE_APP).start_report.remote().result())
    ready_s = time.time()
    timeline.add("deploy applications", deployed_s, replica.started_s)
    timeline.add("put into service", replica.ready_s, ready_s)
    report = StartReport(started_s, ready_s, (*timeline.spans(), *replica.spans))
    _tell_models(report)
    return report


def _failures() -> str:
    """What Serve says of the applications that failed, with the last line of each traceback: the error itself."""
    from ray import serve

    told: list[str] = []
    for name, app in serve.status().applications.items():
        if "FAILED" in app.status.value:
            told.append(f"{name}: {app.message}")
            told += [each.message.strip().splitlines()[-1] for each in app.deployments.values() if each.message.strip()]
    return "; ".join(told)


def _tell_models(report: StartReport) -> None:
    """Have /v1/models show this start; nothing that is served waits for it or needs it."""
    from ray import serve

    from rag_stack.serving.prefixes import MODELS_APP

    serve.get_app_handle(MODELS_APP).keep_load.remote("command", report.to_card())


def _shut_down() -> None:
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
