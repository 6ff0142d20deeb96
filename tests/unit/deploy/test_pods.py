"""What pods are given beyond schemas: their settings as annotations, ports with names, and nothing by accident."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import yaml

from deploy.verify.pod_template import PodTemplate, matches, pod_templates
from deploy.verify.ray_cluster import clusters
from deploy.verify.render import KUBERAY, Render, render, targets
from deploy.verify.render import short_name as name_of_target
from deploy.verify.rendered import Rendered, dig
from deploy.verify.serve_config import serve_configs
from rag_stack.artifacts.fetch import Source

TARGETS = [name_of_target(each) for each in targets()]
SETTINGS = {
    "rag-stack/worker-cpus": ("rag-stack-size", "RAG_STACK_WORKER_CPUS"),
    "rag-stack/worker-memory": ("rag-stack-size", "RAG_STACK_WORKER_MEMORY"),
    "rag-stack/worker-gpus": ("rag-stack-size", "RAG_STACK_WORKER_GPUS"),
    "rag-stack/min-replicas": ("rag-stack-size", "RAG_STACK_MIN_REPLICAS"),
    "rag-stack/max-replicas": ("rag-stack-size", "RAG_STACK_MAX_REPLICAS"),
    "rag-stack/restart": ("rag-stack-size", "RAG_STACK_RESTART"),
    "rag-stack/root": ("rag-stack-environment", "RAG_STACK_ROOT"),
    "rag-stack/traces": ("rag-stack-environment", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    "rag-stack/traces-sampled": ("rag-stack-environment", "OTEL_TRACES_SAMPLER_ARG"),
    "rag-stack/traces-service": ("rag-stack-environment", "OTEL_SERVICE_NAME"),
    "rag-stack/traces-sampler": ("rag-stack-environment", "OTEL_TRACES_SAMPLER"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_no_service_becomes_an_environment_variable(name: str, renders: dict[str, Render]) -> None:
    """The Service rag-stack would be RAG_STACK_PORT=tcp://... in every pod that starts after it."""
    linked = [
        pod.thing for pod in pod_templates(_rendered(renders, name)) if pod.spec.get("enableServiceLinks") is not False
    ]
    assert not linked


@pytest.mark.parametrize("name", TARGETS)
def test_what_pods_read_once_is_a_part_of_the_pods(name: str, renders: dict[str, Render]) -> None:
    """A changed ConfigMap replaces no pod; a changed annotation does."""
    overlay = _rendered(renders, name)
    wanted = {
        key: (dig(overlay.find("ConfigMap", config_map), "data") or {}).get(variable, "")
        for key, (config_map, variable) in SETTINGS.items()
    }
    for cluster in clusters(overlay):
        if cluster.owner["kind"] == "RayService":
            assert len(cluster.groups) == 3
            for group in cluster.groups:
                assert dig(group.spec, "template", "metadata", "annotations") == wanted
            assert all(wanted[key] for key in SETTINGS if "traces" not in key)


def test_a_pod_monitor_scrapes_ports_that_its_pods_declare(renders: dict[str, Render]) -> None:
    overlay = _rendered(renders, "complete")
    monitors = list(overlay.of("PodMonitor"))
    assert {each["metadata"]["name"] for each in monitors} == {
        "rag-stack-head",
        "rag-stack-workers",
        "rag-stack-activator",
    }
    for monitor in monitors:
        scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        pods = [pod for pod in pod_templates(overlay) if matches(monitor["spec"]["selector"], pod.labels)]
        assert pods
        for pod in pods:
            assert scraped <= _declared_ports(pod), pod.thing


def test_the_activators_metrics_are_where_it_says(renders: dict[str, Render]) -> None:
    (monitor,) = [
        each
        for each in _rendered(renders, "complete").of("PodMonitor")
        if each["metadata"]["name"] == "rag-stack-activator"
    ]
    assert [each["port"] for each in monitor["spec"]["podMetricsEndpoints"]] == ["ops"]


@pytest.mark.parametrize(
    ("name", "job"), [("ebs-warm-cache", "ebs-warm-cache"), ("complete", "complete"), ("nvme", "jobs/cache-warm")]
)
def test_a_warm_cache_has_what_the_release_names(name: str, job: str, renders: dict[str, Render]) -> None:
    (config,) = serve_configs(_rendered(renders, name))
    release = config.release
    assert release is not None
    named = {f"models/{release.model.name}", f"models/{release.embedder.name}"}
    named |= {f"indexes/{store.index}" for store in release.stores}
    commands = [
        [*(each.get("command") or []), *(each.get("args") or [])]
        for pod in pod_templates(_rendered(renders, job))
        for each in pod.containers
    ]
    (warmed,) = [each[3:] for each in commands if each[:3] == ["rag-stack", "cache", "warm"]]
    assert set(warmed) == named


def test_a_job_waits_longer_than_a_rollout_may_take(renders: dict[str, Render]) -> None:
    limits = [
        config.release.rollout.limit_s
        for each in renders.values()
        for config in serve_configs(_rendered(renders, each.name))
        if config.release is not None
    ]
    (job,) = _rendered(renders, "jobs/release-apply").of("Job")
    assert job["spec"]["activeDeadlineSeconds"] > max(limits)


@pytest.mark.parametrize("name", TARGETS)
def test_a_cache_of_a_pod_stays_out_of_backups(name: str, renders: dict[str, Render]) -> None:
    for pod in pod_templates(_rendered(renders, name)):
        for volume in pod.volumes:
            template = dig(volume, "ephemeral", "volumeClaimTemplate")
            if template:
                assert template["metadata"]["labels"]["velero.io/exclude-from-backup"] == "true", pod.thing


@pytest.mark.parametrize("job", ["index-rebuild", "model-import", "model-import-image", "release-apply"])
def test_a_job_of_a_user_mounts_the_artifacts(job: str, tmp_path: Path) -> None:
    """As the component says: a copy of the job, and a kustomization beside it."""
    copied = tmp_path / "jobs"
    shutil.copytree(KUBERAY / "components" / "jobs-on-volume", tmp_path / "jobs-on-volume")
    copied.mkdir()
    shutil.copy(KUBERAY / "jobs" / f"{job}.yaml", copied)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{job}.yaml"],
        "components": ["../jobs-on-volume"],
    }
    (copied / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = render(copied).rendered
    assert done is not None
    working = [pod for pod in pod_templates(done) if not pod.thing.startswith("RayJob/") or pod.ray]
    assert working
    for pod in working:
        assert {"claimName": "rag-stack-artifacts"} in [each.get("persistentVolumeClaim") for each in pod.volumes]
        (mount,) = [each for each in pod.containers[0]["volumeMounts"] if each["mountPath"] == "/artifacts"]
        assert mount.get("readOnly", False) is (pod.ray is not None and not pod.ray.head)


def test_a_drill_leaves_no_volume_and_no_snapshot(renders: dict[str, Render]) -> None:
    overlay = _rendered(renders, "portworx-restore-drill")
    claim = overlay.find("PersistentVolumeClaim", "rag-stack-artifacts-restored")
    snapshot = overlay.find("VolumeSnapshot", "rag-stack-artifacts")
    volume_class = overlay.find("StorageClass", str(dig(claim, "spec", "storageClassName")))
    snapshot_class = overlay.find("VolumeSnapshotClass", str(dig(snapshot, "spec", "volumeSnapshotClassName")))
    assert (dig(volume_class, "reclaimPolicy"), dig(snapshot_class, "deletionPolicy")) == ("Delete", "Delete")


def test_redis_is_the_first_process_and_its_password_is_in_a_file(renders: dict[str, Render], tmp_path: Path) -> None:
    redis = _rendered(renders, "single-gpu").find("StatefulSet", "redis")
    (script,) = dig(redis, "spec", "template", "spec", "containers", 0, "args")
    server = tmp_path / "valkey-server"
    server.write_text('#!/bin/sh\necho "$$"\necho "$@"\ncat "$1"\n')
    server.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REDIS_PASSWORD": "secret"}
    command = ["sh", "-c", script.replace("/tmp/", f"{tmp_path}/")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        process, arguments, config = started.stdout.read().splitlines()
    assert int(process) == started.pid
    assert "secret" not in arguments
    assert config == "requirepass secret"
    assert (tmp_path / "valkey.conf").stat().st_mode & 0o077 == 0


def test_rules_and_their_cases_speak_of_sources_that_there_are() -> None:
    """`disk` is what an engine's own start reports of its weights."""
    there = {*get_args(Source), "disk"}
    cases = Path(__file__).with_name("alerts.yaml").read_text()
    said = set(re.findall(r'source="(\w+)"', cases)) | set(re.findall(r"source: (\w+)", cases))
    assert said
    assert said <= there
    rules = (KUBERAY / "components" / "monitoring" / "rules.yaml").read_text()
    assert "`origin`" not in rules


def _rendered(renders: dict[str, Render], name: str) -> Rendered:
    rendered = renders[name].rendered
    assert rendered is not None
    return rendered


def _declared_ports(pod: PodTemplate) -> set[str]:
    return {port["name"] for container in pod.containers for port in container.get("ports") or []}
