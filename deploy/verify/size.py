"""The numbers that are said in several places: the size of a worker, and times."""

import re
from collections.abc import Iterator
from typing import Final

from deploy.verify.environment import config_data
from deploy.verify.pod_template import PodTemplate, pod_templates
from deploy.verify.ray_cluster import Cluster, Group, clusters
from deploy.verify.rendered import Flaw, Rendered, Rule, dig
from deploy.verify.serve_config import ServeConfig, serve_configs
from rag_stack.config import Release

ENGINE_GROUP: Final = "engine"
SIZE: Final = "rag-stack-size"
_SHARED_MEMORY: Final = "/dev/shm"
_SIZES: Final = {
    "RAG_STACK_WORKER_CPUS": "cpu",
    "RAG_STACK_WORKER_MEMORY": "memory",
    "RAG_STACK_WORKER_GPUS": "nvidia.com/gpu",
}


def worker_size(overlay: Rendered) -> Iterator[Flaw]:
    """The engine's pods have what the size says."""
    for group, size in _engine_groups(overlay):
        for key, resource in _SIZES.items():
            for kind in ("requests", "limits"):
                said = str(dig(group.container, "resources", kind, resource) or "0")
                if said != size.get(key):
                    yield Flaw(
                        group.thing, f"{kind}.{resource} is {said}, {SIZE} says {key}={size.get(key)}: {_LIST_IT}"
                    )
        for key, field in (("RAG_STACK_MAX_WORKERS", "maxReplicas"), ("RAG_STACK_MIN_REPLICAS", "minReplicas")):
            if str(group.spec.get(field)) != size.get(key):
                yield Flaw(
                    group.thing, f"{field} is {group.spec.get(field)}, {SIZE} says {key}={size.get(key)}: {_LIST_IT}"
                )


def surge(overlay: Rendered) -> Iterator[Flaw]:
    """A rollout starts a replica beside the others, which needs a pod."""
    for config, release in _releases(overlay):
        size = config_data(overlay, SIZE)
        most, workers = int(size.get("RAG_STACK_MAX_REPLICAS", 1)), int(size.get("RAG_STACK_MAX_WORKERS", 0))
        if size and workers < most + release.rollout.surge:
            yield Flaw(
                config.thing,
                f"RAG_STACK_MAX_WORKERS {workers} is under RAG_STACK_MAX_REPLICAS {most} + rollout.surge "
                f"{release.rollout.surge}: a rollout would wait for ever",
            )


def release_size(overlay: Rendered) -> Iterator[Flaw]:
    """The release does not contradict the size: GPUs of a worker are its tensor parallelism."""
    from rag_stack.errors import ConfigError
    from rag_stack.serving.size import sized, worker_size

    for config, release in _releases(overlay):
        try:
            sized(release, worker_size(config_data(overlay, SIZE)))
        except ConfigError as exc:
            yield Flaw(config.thing, str(exc))


def drain_time(overlay: Rendered) -> Iterator[Flaw]:
    """A pod that goes lives as long as its answers may take, and as its preStop sleeps."""
    for config, release in _releases(overlay):
        for pod in pod_templates(overlay):
            if pod.ray is None or pod.owner is not config.owner:
                continue
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            least = max([release.drain.limit_s, *_sleeps(pod)])
            if grace < least:
                yield Flaw(
                    pod.thing, f"terminationGracePeriodSeconds {grace} is under {least:g} (drain.limit_s, preStop)"
                )


def shared_memory(overlay: Rendered) -> Iterator[Flaw]:
    """Ray's object store lies in /dev/shm, whose bytes count in the container's memory."""
    from rag_stack.serving.size import quantity

    for cluster in clusters(overlay):
        for group in cluster.groups:
            store, limit = group.start_params.get("object-store-memory"), _shm_limit(group)
            if limit is None:
                yield Flaw(
                    group.thing, "has no /dev/shm of its own: mount an emptyDir {medium: Memory, sizeLimit: ...}"
                )
            elif store is not None and float(store) > quantity(limit):
                yield Flaw(group.thing, f"object-store-memory {store} is over /dev/shm's {limit}: Ray would use /tmp")


RULES: Final[tuple[Rule, ...]] = (
    worker_size,
    surge,
    release_size,
    drain_time,
    shared_memory,
)
_LIST_IT: Final = "list components/size after what sets it"


def size_of(overlay: Rendered) -> dict[str, str]:
    """The size as the engine's pods have it in their environment."""
    return config_data(overlay, SIZE)


def _engine_groups(overlay: Rendered) -> Iterator[tuple[Group, dict[str, str]]]:
    size = config_data(overlay, SIZE)
    for cluster in clusters(overlay) if size else ():
        for group in cluster.workers if _is_service(cluster) else ():
            if group.name == ENGINE_GROUP:
                yield group, size


def _is_service(cluster: Cluster) -> bool:
    return bool(cluster.owner.get("kind") == "RayService")


def _releases(overlay: Rendered) -> Iterator[tuple[ServeConfig, Release]]:
    for config in serve_configs(overlay):
        release = config.release
        if release is not None:
            yield config, release


def _sleeps(pod: PodTemplate) -> list[float]:
    """How long its preStop hooks wait."""
    commands = [dig(each, "lifecycle", "preStop", "exec", "command") or [] for each in pod.containers]
    return [float(found) for each in commands for found in re.findall(r"\bsleep (\d+)", " ".join(map(str, each)))]


def _shm_limit(group: Group) -> str | None:
    mounts = group.container.get("volumeMounts") or []
    mounted = [each["name"] for each in mounts if each.get("mountPath") == _SHARED_MEMORY]
    for volume in group.pod.get("volumes") or []:
        if volume.get("name") in mounted and dig(volume, "emptyDir", "medium") == "Memory":
            limit = dig(volume, "emptyDir", "sizeLimit") or dig(group.container, "resources", "limits", "memory")
            return str(limit) if limit else None
    return None
