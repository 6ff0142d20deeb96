"""Mistakes in what processes read when they start, and in what Prometheus is told to ask them."""

from typing import Any, Final

from deploy.verify.mistakes.draft import Draft, Mistake


def _without_volume(draft: Draft, group: str, path: str) -> None:
    mounts = draft.container(group)["volumeMounts"]
    draft.container(group)["volumeMounts"] = [each for each in mounts if each["mountPath"] != path]


def _job(draft: Draft, container: int) -> dict[str, Any]:
    found: dict[str, Any] = draft.spec("Job", "trial")["template"]["spec"]["containers"][container]
    return found


def _ephemeral(draft: Draft) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    draft.pod("engine")["volumes"][0] = {"name": "cache", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}


def _rule(draft: Draft, index: int, expression: str) -> None:
    draft.spec("PrometheusRule", "trial")["groups"][0]["rules"][index].update(expr=expression)


def _dashboard(draft: Draft, before: str, after: str) -> None:
    data = draft.data("trial-dashboards")
    data["trial.json"] = data["trial.json"].replace(before, after)


MISTAKES: Final = (
    Mistake(
        "a setting of the environment that our processes count on",
        "environment",
        "environment",
        "HF_HUB_OFFLINE",
        lambda draft: draft.data("rag-stack-environment").update(HF_HUB_OFFLINE="0"),
    ),
    Mistake(
        "a pod without the environment",
        "environment",
        "same-environment",
        "rag-stack-environment",
        lambda draft: draft.container("engine").pop("envFrom"),
    ),
    Mistake(
        "a cache in the image's own layer",
        "environment",
        "cache-volume",
        "RAG_STACK_CACHE",
        lambda draft: _without_volume(draft, "engine", "/var/cache/rag-stack"),
    ),
    Mistake(
        "a pod in whose environment every Service stands",
        "environment",
        "service-links",
        "RAG_STACK_PORT",
        lambda draft: draft.spec("Deployment", "trial")["template"]["spec"].pop("enableServiceLinks"),
    ),
    Mistake(
        "another root, of which no pod that runs would hear",
        "environment",
        "config-rolls",
        "RAG_STACK_ROOT=s3://elsewhere",
        lambda draft: draft.data("rag-stack-environment").update(RAG_STACK_ROOT="s3://elsewhere"),
    ),
    Mistake(
        "a size that pods are not told anew",
        "environment",
        "config-rolls",
        "RAG_STACK_MAX_REPLICAS=17",
        lambda draft: draft.data("rag-stack-size").update(RAG_STACK_MAX_REPLICAS="17"),
    ),
    Mistake(
        "artifacts in a folder that pods do not mount",
        "environment",
        "file-root",
        "group engine container ray-worker",
        lambda draft: draft.data("rag-stack-environment").update(RAG_STACK_ROOT="file:///artifacts"),
    ),
    Mistake(
        "a job without the artifacts' folder",
        "environment",
        "file-root",
        "Job/trial container apply",
        lambda draft: draft.data("rag-stack-environment").update(RAG_STACK_ROOT="file:///artifacts"),
    ),
    Mistake(
        "a backup of each pod's cache",
        "references",
        "cache-backups",
        "group engine",
        _ephemeral,
    ),
    Mistake(
        "a backup of a claim that is a cache",
        "references",
        "cache-backups",
        "PersistentVolumeClaim/trial:",
        lambda draft: draft.one("PersistentVolumeClaim", "trial")["metadata"].pop("labels"),
    ),
    Mistake(
        "a cache warmed with another model than is served",
        "serve",
        "seed-names",
        "warms models/llama",
        lambda draft: _job(draft, 1)["args"].append("models/llama/1"),
    ),
    Mistake(
        "a cache that lacks what the release names",
        "serve",
        "seed-names",
        "does not warm indexes/handbook",
        lambda draft: _job(draft, 1).update(args=["models/qwen3-8b", "models/all-minilm-l6-v2"]),
    ),
    Mistake(
        "a job that ends before the rollout that it follows",
        "serve",
        "apply-deadline",
        "rollout.limit_s",
        lambda draft: draft.spec("Job", "trial").update(activeDeadlineSeconds=600),
    ),
    Mistake(
        "a PodMonitor of a port that the head has not",
        "metrics",
        "monitors",
        "autoscaler-metrics",
        lambda draft: draft.spec("PodMonitor", "trial")["podMetricsEndpoints"][1].update(port="autoscaler-metrics"),
    ),
    Mistake(
        "a PodMonitor that selects pods of which one has not its port",
        "metrics",
        "monitors",
        "RayJob/trial head",
        lambda draft: draft.spec("PodMonitor", "trial").update(selector={"matchLabels": {"ray.io/node-type": "head"}}),
    ),
    Mistake(
        "a PodMonitor of a port number that no container declares",
        "metrics",
        "monitors",
        "9102",
        lambda draft: draft.spec("PodMonitor", "trial").update(podMetricsEndpoints=[{"portNumber": 9102}]),
    ),
    Mistake(
        "a PodMonitor of the activator's port for clients",
        "metrics",
        "activator-metrics",
        "8081",
        lambda draft: draft.spec("PodMonitor", "trial-activator")["podMetricsEndpoints"][0].update(port="http"),
    ),
    Mistake(
        "HAProxy's exporter on a port that is not declared",
        "metrics",
        "proxy-metrics",
        "9109",
        lambda draft: draft.data("rag-stack-environment").update(RAY_SERVE_HAPROXY_METRICS_PORT="9109"),
    ),
    Mistake(
        "a rule about a metric that nobody tells",
        "metrics",
        "told-metrics",
        "index_laging",
        lambda draft: _rule(draft, 1, "max by (namespace, store) (ray_rag_stack_index_laging) == 1"),
    ),
    Mistake(
        "a dashboard of the activator under Ray's prefix",
        "metrics",
        "told-metrics",
        "ray_rag_stack_activator_phase",
        lambda draft: _dashboard(draft, "rag_stack_activator", "ray_rag_stack_activator"),
    ),
    Mistake(
        "an alert by a label that the metric has not",
        "metrics",
        "told-labels",
        "'index'",
        lambda draft: _rule(draft, 1, "max by (namespace, index) (ray_rag_stack_index_lagging) == 1"),
    ),
    Mistake(
        "an alert whose text has a label that its expression adds up over",
        "metrics",
        "told-labels",
        "$labels.store",
        lambda draft: _rule(draft, 1, "max by (namespace) (ray_rag_stack_index_lagging) == 1"),
    ),
    Mistake(
        "loads from a source that there is not",
        "metrics",
        "told-values",
        "origin",
        lambda draft: _rule(draft, 0, 'sum by (namespace) (ray_rag_stack_artifact_load_bytes_total{source="origin"})'),
    ),
    Mistake(
        "a pattern of stages of which one never occurs",
        "metrics",
        "told-values",
        "fetch|copy",
        lambda draft: _rule(draft, 0, 'ray_rag_stack_artifact_load_seconds_sum{stage=~"fetch|copy"}'),
    ),
    Mistake(
        "a dashboard of a phase that there is not",
        "metrics",
        "told-values",
        "asleep",
        lambda draft: _dashboard(draft, "serving", "asleep"),
    ),
)
