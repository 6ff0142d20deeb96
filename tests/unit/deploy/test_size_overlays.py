"""The overlays for size: one ConfigMap says how large a pod is, the rest follows; an overlay of a user replaces it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")

from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as node_types,
)

from rag_stack.config import Release
from rag_stack.generation.kv_settings import GIB, TokenBytes
from rag_stack.generation.memory_budget import Memory, host_budget
from rag_stack.generation.replica_parts import IndexPart, ReplicaParts
from rag_stack.serving.environment import cluster_environment
from rag_stack.serving.replica_memory import beside
from rag_stack.serving.size import MEMORY, on_workers, worker_size
from rag_stack.serving.wake.runtime import platform

KUBERAY = Path(__file__).parents[3] / "deploy" / "kuberay"
SIZES = ("dev", "single-gpu", "multi-gpu", "large-index")
# What a release may have beside its replicas while it is rolled out.
SURGE = 1
ENGINE = 1
# The demo's weights, on a CPU with bfloat16 and on one without: bytes of a number.
NUMBERS = {"bfloat16": 2, "float32": 4}


def render(folder: Path) -> list[dict[str, Any]]:
    kubectl = Path(sys.prefix) / "bin" / "kubectl"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def one(documents: list[dict[str, Any]], kind: str, name: str = "rag-stack") -> dict[str, Any]:
    (found,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


@pytest.fixture(params=SIZES)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(KUBERAY / "overlays" / request.param)


def test_pods_have_the_size_that_their_environment_says(documents: list[dict[str, Any]]) -> None:
    size = one(documents, "ConfigMap", "rag-stack-size")["data"]
    cluster = one(documents, "RayService")["spec"]["rayClusterConfig"]
    types = node_types({"metadata": {"name": "x", "namespace": "rag-stack"}, "spec": cluster})["available_node_types"]
    engine = types["engine"]
    assert engine["resources"]["CPU"] == int(size["RAG_STACK_WORKER_CPUS"])
    assert engine["resources"].get("GPU", 0) == int(size["RAG_STACK_WORKER_GPUS"])
    assert engine["resources"]["memory"] == int(size["RAG_STACK_WORKER_MEMORY"].removesuffix("Gi")) << 30
    assert engine["min_workers"] == int(size["RAG_STACK_MIN_REPLICAS"])
    assert engine["max_workers"] == int(size["RAG_STACK_MAX_WORKERS"])
    assert engine["max_workers"] >= int(size["RAG_STACK_MAX_REPLICAS"]) + SURGE
    # An engine fits into no control pod, and nothing at all into the head.
    assert types["control"]["resources"]["CPU"] < engine["resources"]["CPU"]
    assert types["control"]["resources"]["control"] > 0
    assert types["headgroup"]["resources"]["CPU"] == 0
    for spec in _pods(cluster):
        names = {each["configMapRef"]["name"] for each in spec["containers"][0]["envFrom"] if "configMapRef" in each}
        assert names == {"rag-stack-environment", "rag-stack-size"}


def test_what_ends_leaves_answers_their_time(documents: list[dict[str, Any]]) -> None:
    service = one(documents, "RayService")["spec"]
    (application,) = [
        each for each in yaml.safe_load(service["serveConfigV2"])["applications"] if each["name"] == "engine"
    ]
    drain_s = application["args"]["release"]["drain"]["limit_s"]
    for spec in _pods(service["rayClusterConfig"])[1:]:
        sleep_s = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1].split()[-1])
        assert drain_s < sleep_s < spec["terminationGracePeriodSeconds"]
    if service["upgradeStrategy"]["type"] != "None":
        assert service["rayClusterDeletionDelaySeconds"] > drain_s


def test_overlays_find_what_they_patch_where_the_base_says(documents: list[dict[str, Any]]) -> None:
    cluster = one(documents, "RayService")["spec"]["rayClusterConfig"]
    assert [each["groupName"] for each in cluster["workerGroupSpecs"]] == ["control", "engine"]
    for spec in _pods(cluster):
        assert spec["volumes"][0]["name"] == "cache"
        assert spec["containers"][0]["volumeMounts"][0] == {"name": "cache", "mountPath": "/var/cache/rag-stack"}
        # Where the root is read-only, each of these is written to.
        writable = {each["mountPath"] for each in spec["containers"][0]["volumeMounts"] if not each.get("readOnly")}
        assert writable >= {"/tmp", "/home/ray", "/dev/shm", "/var/cache/rag-stack"}


def test_the_services_of_the_operator_find_the_pods(documents: list[dict[str, Any]]) -> None:
    """rag-stack-head-svc selects by the label that the operator itself gives the head's pod."""
    cluster = one(documents, "RayService")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        assert "app.kubernetes.io/name" not in labels
        assert labels["app.kubernetes.io/part-of"] == "rag-stack"


def test_the_environment_is_what_the_code_asks_for(documents: list[dict[str, Any]]) -> None:
    found = one(documents, "ConfigMap", "rag-stack-environment")["data"]
    deployment = {"RAG_STACK_ROOT", "RAG_STACK_CACHE", "RAG_STACK_KEYS_DIRECTORY"}
    assert found.keys() >= deployment
    assert {name: value for name, value in found.items() if name not in deployment} == cluster_environment()


@pytest.mark.parametrize("again", [True, False], ids=["components listed again", "components forgotten"])
def test_an_overlay_of_a_user_replaces_the_release_and_the_size(tmp_path: Path, *, again: bool) -> None:
    def relative(*parts: str) -> str:
        return os.path.relpath(KUBERAY.joinpath(*parts), tmp_path.resolve())

    overlay: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "rag-stack",
        "resources": [relative("overlays", "single-gpu")],
        "images": [{"name": "rag-stack", "newName": "registry.example/rag-stack"}],
        "configMapGenerator": [
            {"name": "rag-stack-size", "behavior": "merge", "literals": ["RAG_STACK_WORKER_MEMORY=96Gi"]},
            {"name": "rag-stack-serve", "behavior": "replace", "files": ["serve.yaml"]},
        ],
    }
    if again:
        overlay["components"] = [relative("components", "size"), relative("components", "serve")]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    (tmp_path / "serve.yaml").write_text("applications: []  # mine\n")
    documents = render(tmp_path)
    service = one(documents, "RayService")["spec"]
    engine = service["rayClusterConfig"]["workerGroupSpecs"][ENGINE]["template"]["spec"]["containers"][0]
    assert (service["serveConfigV2"] == "applications: []  # mine\n") is again
    assert (engine["resources"]["limits"]["memory"] == "96Gi") is again
    head = service["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "registry.example/rag-stack:0.1.0"
    # It is for kustomize alone, and no object of the cluster.
    assert not [each for each in documents if each["metadata"]["name"] == "rag-stack-serve"]


def _pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [each["template"]["spec"] for each in groups]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("standby", [False, True])
def test_a_replica_fits_beside_what_else_lives_in_its_pod(
    documents: list[dict[str, Any]], number: str, standby: bool
) -> None:
    size = worker_size(one(documents, "ConfigMap", "rag-stack-size")["data"])
    service = one(documents, "RayService")["spec"]
    (args,) = [
        each["args"] for each in yaml.safe_load(service["serveConfigV2"])["applications"] if each["name"] == "engine"
    ]
    group = service["rayClusterConfig"]["workerGroupSpecs"][ENGINE]
    store = int(group["rayStartParams"]["object-store-memory"])
    told = Release.model_validate(args["release"])
    release = told.model_copy(update={"wake": told.wake.model_copy(update={"standby": standby})})
    budget = host_budget(
        f"a replica of {release.name!r}",
        demo(number, tokens=release.engine["max_model_len"]),
        Memory(size.memory_bytes or 0, MEMORY),
        engine=on_workers(release, size).engine,
        env={},
        on=platform(size),
        beside=beside(release, size, store_bytes=store),
    )
    print(budget)
    budget.check()
    assert "Ray of this node" in str(budget)
    assert ("standby" in str(budget)) == standby
    if platform(size) == "cpu":
        assert budget.cache_bytes is not None
        assert budget.least_bytes <= budget.cache_bytes <= (size.memory_bytes or 0) / 2


def demo(number: str, *, tokens: int) -> ReplicaParts:
    """SmolLM2 135M, MiniLM and the documentation of Python; what GPUs serve is not in the host's memory."""
    width = NUMBERS[number]
    token = 2 * 30 * 3 * 64 * width
    return ReplicaParts(
        embedder="all-minilm-l6-v2",
        embedder_bytes=92_000_000,
        weight_bytes=134_515_008 * width,
        weight_source=f"as {number}",
        token_bytes=TokenBytes(token),
        context_bytes=token * tokens,
        indexes=(IndexPart("docs", 0, GIB // 8),),
    )
