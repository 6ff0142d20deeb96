"""The seven builders, and the serve.yaml of each size that names them."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ENGINE_BUILDER, ArtifactsConfig, load_deployed_release
from rag_stack.errors import ConfigError, IncompatibleReleaseError, MemoryBudgetError
from rag_stack.generation.engine_settings import check_engine_settings, vllm_fields
from rag_stack.generation.memory_budget import Memory
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.releases.rollout import Rollout
from rag_stack.releases.start_history import Start, StartHistory, label_of, write_history
from rag_stack.serving import builders
from rag_stack.serving.app import engine_config
from rag_stack.serving.builders import pinned_release, release_of
from rag_stack.serving.environment import cluster_environment, image_environment, prepare
from rag_stack.serving.patience import Patience
from rag_stack.serving.prefixes import ADMIN_APP, ENGINE_APP, PREFIXES
from rag_stack.serving.rag_server import RELEASE_KEY, as_released
from rag_stack.serving.replica_memory import gpu_budget, gpu_memory, replica_budget
from rag_stack.serving.seed import deployed_release
from rag_stack.serving.size import worker_size
from rag_stack.serving.wake.runtime import STANDBY_BYTES
from tests.pinnable import publish_model

KUBERAY = Path(__file__).parents[3] / "deploy" / "kuberay"
FILES = sorted(KUBERAY.glob("**/serve.yaml"))
SIZES = {"base", "dev", "single-gpu", "multi-gpu", "large-index"}


@pytest.fixture
def tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiers:
    """Two models, and an environment like a pod's, on a node that has no cache and may not make one."""
    root = f"file://{tmp_path}/store"
    monkeypatch.setenv("RAG_STACK_ROOT", root)
    monkeypatch.setenv("RAG_STACK_CACHE", "/proc/none")
    monkeypatch.setenv("RAG_STACK_WORKER_CPUS", "8")
    monkeypatch.setenv("RAG_STACK_WORKER_MEMORY", "64Gi")
    monkeypatch.setenv("RAG_STACK_WORKER_GPUS", "2")
    monkeypatch.setenv("RAG_STACK_MIN_REPLICAS", "0")
    monkeypatch.setenv("RAG_STACK_MAX_REPLICAS", "3")
    tiers = open_tiers(ArtifactsConfig(root=root, cache=tmp_path / "cache"), MemoryRecorder())
    for name in ("m", "e"):
        publish_model(tiers.catalog, tmp_path, name, name)
    return tiers


def args(**changes: Any) -> dict[str, Any]:
    return {"release": {"name": "test", "model": {"name": "m"}, "embedder": {"name": "e"}, **changes}, "revision": "1"}


def test_the_sizes_are_there() -> None:
    assert {file.parent.name for file in FILES} >= SIZES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_ray_and_vllm_take_each_file(file: Path) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    prefixes = {app.name: app.route_prefix for app in config.applications}
    assert prefixes == {ENGINE_APP: "/", **PREFIXES}
    assert config.proxy_location == "EveryNode"
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    assert len({str(app.args) for app in config.applications}) == 1, "all applications have the same release"
    check_engine_settings(release_of(config.applications[0].args).engine, fields=vllm_fields())
    for app in config.applications:
        module, _, name = app.import_path.partition(":")
        assert name == app.name
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_the_control_applications_are_pinned_to_their_group(file: Path) -> None:
    for app in ServeDeploySchema.model_validate(yaml.safe_load(file.read_text())).applications:
        if app.name == ENGINE_APP:
            assert app.deployments == []
            continue
        (deployment,) = app.deployments
        options = deployment.ray_actor_options
        assert (options.num_cpus, options.resources) == (0, {"control": 0.01})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_no_file_says_again_what_follows_from_the_size(file: Path) -> None:
    release = load_deployed_release(file)
    assert not {"min_replicas", "max_replicas"} & release.scaling.model_fields_set
    assert not {"tensor_parallel_size", "pipeline_parallel_size"} & set(release.engine)
    assert "server" not in release.model_fields_set, "http_options rule where a cluster listens, the Secret its keys"


def test_the_engines_config_needs_no_weights_here(tiers: Tiers) -> None:
    release = release_of(args(engine={"max_num_seqs": 4}))
    pinned = deployed_release(release, open_tiers(release.artifacts, MemoryRecorder()), seeds=True)
    config = engine_config(pinned)
    assert config.engine_kwargs == {"max_num_seqs": 4, "tensor_parallel_size": 2}
    placed = config.get_engine_config()
    assert placed.placement_strategy == "STRICT_PACK"
    assert placed.placement_bundles == [{"GPU": 1, "CPU": 7}, {"GPU": 1}]
    scaling = config.deployment_config["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (0, 4), "and one more during a rollout"
    plan = Rollout(tiers.catalog, "test").plan()
    assert plan is not None
    told = config.experimental_configs[RELEASE_KEY]
    assert told["version"] == plan.goal
    assert "tensor_parallel_size" not in told["release"]["engine"], "a worker's size is no part of a version"


def test_a_pod_that_has_read_another_size_serves_as_it_was_deployed(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of replicas, or the GPUs of a second cluster, have changed since the builder ran."""
    release = release_of(args())
    pinned = deployed_release(release, open_tiers(release.artifacts, MemoryRecorder()), seeds=True)
    config = engine_config(pinned)
    monkeypatch.setenv("RAG_STACK_MAX_REPLICAS", "4")
    monkeypatch.setenv("RAG_STACK_WORKER_GPUS", "8")
    served = as_released(config, pinned, pinned)
    assert served.engine_kwargs["tensor_parallel_size"] == 2
    assert served.deployment_config["autoscaling_config"]["max_replicas"] == 3 + 1
    taken = served.experimental_configs[RELEASE_KEY]["release"]
    assert taken["scaling"]["max_replicas"] == 3


def test_the_starts_on_record_are_found_by_what_was_published(tiers: Tiers) -> None:
    """Replicas announce their starts under the release as it was published: see keep_announcing."""
    release = release_of(args())
    pinned = deployed_release(release, open_tiers(release.artifacts, MemoryRecorder()), seeds=True)
    history = StartHistory().with_start(Start(label_of(pinned.release), "cache", ready_at=1.0, seconds=321.0))
    write_history(tiers.catalog.store, "test", history)
    config = engine_config(pinned)
    assert config.deployment_config["autoscaling_config"]["policy"].policy_kwargs["load_s"] == 321.0


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "e"}},
        {"engine_env": {"VLLM_USE_V2": "1"}},
        {"engine": {"tensor_parallel_size": 1, "pipeline_parallel_size": 2}},
    ],
)
def test_what_no_running_replica_can_become_is_applied_first_and_deployed_then(
    change: dict[str, Any], tiers: Tiers
) -> None:
    """The order in runbooks/model-change.md."""
    before = pinned_release(args(), seeds=True)
    running, wanted = engine_config(before), pin(release_of(args(**change)), tiers)
    assert pinned_release(args(**change), seeds=True).version == before.version, "deployed first, the old one again"
    rollout = Rollout(tiers.catalog, "test")
    with pytest.raises(IncompatibleReleaseError, match=r"one deployment|import the new weights"):
        rollout.apply(wanted)
    assert rollout.apply(wanted, restart=True).outcome == "promoted"
    with pytest.raises(IncompatibleReleaseError):
        as_released(running, before, wanted)
    after = pinned_release(args(**change), seeds=True)
    assert after.version == wanted.version
    served = as_released(engine_config(after), after, after)
    assert served.model_loading_config.model_id == wanted.release.model.name


def test_what_no_worker_can_hold_is_refused_with_the_sum(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_STACK_WORKER_GPUS", "0")
    monkeypatch.setenv("RAG_STACK_WORKER_MEMORY", "1Gi")
    with pytest.raises(
        RayServeException, match=r"MemoryBudgetError: a replica of 'test' needs .* has 1\.00 GiB"
    ) as told:
        builders.engine(args())
    assert "RAG_STACK_WORKER_MEMORY" in str(told.value)
    assert "engine's processes" in str(told.value)


def test_an_offload_is_refused_on_cpus(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_STACK_WORKER_GPUS", "0")
    with pytest.raises(RayServeException, match=r"engine\.kv_offloading_size offloads.*runs on CPUs"):
        builders.engine(args(engine={"kv_offloading_size": 4}))


def test_a_replica_gives_its_cache_what_is_left(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_STACK_WORKER_GPUS", "0")
    monkeypatch.setattr("rag_stack.serving.replica_memory.node_bytes", lambda: None)
    release = release_of(args())
    pinned = deployed_release(release, open_tiers(release.artifacts, MemoryRecorder()), seeds=True)
    config = engine_config(pinned)
    assert "kv_cache_memory_bytes" not in config.engine_kwargs
    cache = replica_budget(pinned.release, tiers, worker_size()).cache_bytes
    assert cache == 32 * 2**30
    served = as_released(config, pinned, pinned, cache={"kv_cache_memory_bytes": cache})
    assert served.engine_kwargs["kv_cache_memory_bytes"] == cache


def test_what_else_lives_in_a_pod_is_in_its_budget(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    parked = pin(release_of(args(wake={"standby": True})), tiers).release
    alone = pin(release_of(args()), tiers).release
    both = [replica_budget(release, tiers, worker_size()) for release in (alone, parked)]
    assert [any(need.what == "Ray of this node" for need in budget.needs) for budget in both] == [True, True]
    assert both[1].needed_bytes - both[0].needed_bytes == STANDBY_BYTES
    for name in ("CPUS", "MEMORY", "GPUS", "MIN_REPLICAS", "MAX_REPLICAS"):
        monkeypatch.delenv(f"RAG_STACK_WORKER_{name}", raising=False)
    assert "Ray of this node" not in str(replica_budget(alone, tiers, worker_size())), "a machine has others anyway"


def test_a_share_is_ignored_on_cpus_and_that_is_said_once(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAG_STACK_WORKER_GPUS", "0")
    release = pin(release_of(args(name="shared", engine={"gpu_memory_utilization": 0.37})), tiers).release
    first, again = (replica_budget(release, tiers, worker_size()) for _ in range(2))
    assert first.cache_bytes == again.cache_bytes is not None
    assert len([record for record in caplog.records if "gpu_memory_utilization" in record.message]) == 1


def test_a_gpu_that_is_too_small_is_refused_by_the_replica(tiers: Tiers) -> None:
    pinned = pin(release_of(args()), tiers)
    gpu_budget(pinned.release, tiers, worker_size(), Memory(80 << 30, "a GPU")).check()
    with pytest.raises(MemoryBudgetError, match="an engine's worker of 'test' needs"):
        gpu_budget(pinned.release, tiers, worker_size(), Memory(1 << 30, "a GPU"), index_bytes=1 << 30).check()
    given = pin(release_of(args(engine={"kv_cache_memory_bytes": 70 << 30})), tiers).release
    gpu_budget(given, tiers, worker_size(), Memory(80 << 30, "a GPU"), index_bytes=9 << 30).check()
    with pytest.raises(MemoryBudgetError, match="index on the GPU"):
        gpu_budget(given, tiers, worker_size(), Memory(80 << 30, "a GPU"), index_bytes=11 << 30).check()
    assert gpu_memory() is None, "there is none here"


@pytest.mark.parametrize("name", PREFIXES)
def test_each_control_application_is_built(name: str, tiers: Tiers) -> None:
    application = getattr(builders, name)(args())
    assert isinstance(application, serve.Application)
    pinned, *more = application._bound_deployment.init_args
    assert more == ([worker_size()] if name == ADMIN_APP else []), "it starts processes for workers"
    assert pinned.release.artifacts.root == tiers.catalog.store.url
    assert pinned.release.model.digest == tiers.catalog.resolve("models", "m").digest
    assert (pinned.release.scaling.min_replicas, pinned.release.scaling.max_replicas) == (0, 3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (args(modle={}), "ConfigError: the application's args are not valid: release.modle: Extra inputs"),
        ({**args(), "extra": 1}, "ConfigError: the application's args are not valid: extra: Extra inputs"),
        ({"revision": "1"}, "ConfigError: the application's args are not valid: release: Field required"),
        (args(scaling={"max_replicas": 9}), "ConfigError: the release says scaling.max_replicas 9, and the workers"),
        (args(engine={"tensor_parallel_size": 8}), "ConfigError: the release says engine.tensor_parallel_size 8"),
        (args(engine={"max_model_length": 8}), "ConfigError: engine.max_model_length is not an argument of vLLM"),
        (args(model={"name": "absent"}), "ArtifactNotFoundError: "),
    ],
)
def test_what_is_wrong_is_one_line_in_serves_status(given: dict[str, Any], told: str, tiers: Tiers) -> None:
    """Serve keeps the text of its own exceptions as the application's message, and of others the traceback."""
    with pytest.raises(RayServeException) as raised:
        builders.engine(given)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)


def test_a_store_that_does_not_answer_is_asked_again(tiers: Tiers, tmp_path: Path) -> None:
    """Serve itself tries again at once, which does not outlast a short outage."""
    store, now_s, waits = tmp_path / "store", [0.0], list[float]()
    store.rename(tmp_path / "away")
    store.symlink_to("store")  # an error of reading, whoever reads

    def sleep(seconds: float) -> None:
        now_s[0] += seconds
        waits.append(seconds)
        if len(waits) == 3:
            store.unlink()
            (tmp_path / "away").rename(store)

    patience = Patience(60.0, clock=lambda: now_s[0], sleep=sleep)
    assert pinned_release(args(), patience=patience).release.model.version
    assert waits == [1, 2, 4]


def test_a_store_that_stays_away_is_one_line_in_serves_status(tiers: Tiers, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").symlink_to("store")
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    with pytest.raises(RayServeException, match=r"^ArtifactError: .*cannot read"):
        pinned_release(args(), patience=Patience(60.0, clock=lambda: now_s[0], sleep=sleep))
    assert 45 <= now_s[0] <= 60


def test_a_revision_may_be_a_number(tiers: Tiers) -> None:
    assert release_of({**args(), "revision": 2}) == release_of(args())


def test_the_release_of_a_serve_file_is_what_is_applied(tmp_path: Path) -> None:
    file = KUBERAY / "overlays" / "dev" / "serve.yaml"
    document = yaml.safe_load(file.read_text())
    release = load_deployed_release(file)
    assert release.model_dump(exclude_unset=True, mode="json") == document["applications"][0]["args"]["release"]
    document["applications"] = document["applications"][1:]
    other = tmp_path / "serve.yaml"
    other.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=ENGINE_BUILDER):
        load_deployed_release(other)
    document["applications"] = [{"import_path": ENGINE_BUILDER, "args": {"release": {"name": "x", "modle": {}}}}]
    other.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=r"serve\.yaml.*modle: Extra inputs"):
        load_deployed_release(other)


def test_a_clusters_environment_is_that_of_a_server_but_for_what_a_pod_has_for_itself() -> None:
    local: dict[str, str] = {}
    prepare(local)
    cluster = cluster_environment()
    differing = {name for name in local if cluster.get(name) != local[name]} - set(image_environment())
    assert differing == {
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S",
    }
    assert set(cluster) - set(local) == {"RAY_SERVE_HAPROXY_MAXCONN"}
    assert all(isinstance(value, str) for value in cluster.values())
    assert float(cluster["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]) >= 30


def test_an_image_has_our_start_of_haproxy() -> None:
    paths = image_environment()
    assert set(paths) == {"RAY_SERVE_HAPROXY_BINARY_PATH", "RAG_STACK_HAPROXY"}
    assert all(Path(path).is_file() for path in paths.values())
