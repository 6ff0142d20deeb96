"""What processes read in their environment: it is there, it is true, and a change of it starts new pods."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from deploy.verify.pod_template import PodTemplate, pod_templates
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, embedded

ENVIRONMENT: Final = "rag-stack-environment"
# What an overlay decides itself.
_OWN_SETTINGS: Final = frozenset({"RAG_STACK_ROOT", "RAG_STACK_CACHE", "RAG_STACK_KEYS_DIRECTORY"})
_OWN_PREFIX: Final = "OTEL_"
# By which a Job tells create_rayjob.py what to mount.
_CLAIM: Final = "ARTIFACTS_CLAIM"
# What pods read once, when they start.
_DECIDES: Final = re.compile(r"RAG_STACK_(?:ROOT|RESTART|MIN_REPLICAS|MAX_REPLICAS|WORKER_\w+)|OTEL_\w+")
_ANNOTATION: Final = "rag-stack/"
# Kustomize's suffix: ten digits of a hash, written so that they are no word.
_HASHED: Final = re.compile(r"-[2456789bcdfghkmt]{10}$")


def environment(overlay: Rendered) -> Iterator[Flaw]:
    """Every pod has the environment that our processes count on."""
    from rag_stack.serving.environment import cluster_environment

    config_map = overlay.find("ConfigMap", ENVIRONMENT)
    if config_map is None or config_map in overlay.beside:
        return
    said, wanted = config_map.get("data") or {}, cluster_environment()
    for key in sorted({*said, *wanted} - _OWN_SETTINGS):
        if said.get(key) != wanted.get(key) and not key.startswith(_OWN_PREFIX):
            yield Flaw(
                f"ConfigMap/{ENVIRONMENT}", f"{key} is {said.get(key)!r}, cluster_environment() has {wanted.get(key)!r}"
            )


def same_environment(overlay: Rendered) -> Iterator[Flaw]:
    """Every Ray pod reads it."""
    for pod in pod_templates(overlay):
        for container in pod.containers[:1] if pod.ray else ():
            if ENVIRONMENT not in _sources(container):
                yield Flaw(pod.where(container), f"lacks envFrom configMapRef {ENVIRONMENT}: it would ask model hubs")


def service_links(overlay: Rendered) -> Iterator[Flaw]:
    """No Service's address is put into a pod's environment: one called rag-stack would be RAG_STACK_PORT=tcp://..."""
    for pod in pod_templates(overlay):
        if pod.spec.get("enableServiceLinks") is not False:
            yield Flaw(
                pod.thing,
                "says no enableServiceLinks: false: a Service named rag-stack becomes RAG_STACK_PORT=tcp://..., which "
                "programs of ours read as their port",
            )


def config_rolls(overlay: Rendered) -> Iterator[Flaw]:
    """A setting that pods read once stands in their template, too, or its change would start no pod anew."""
    for pod in pod_templates(overlay):
        if pod.ray is None or pod.owner.get("kind") != "RayService":
            continue
        told = Counter(str(value) for key, value in pod.annotations.items() if key.startswith(_ANNOTATION))
        missing = []
        for key, value in sorted(_settings(overlay, pod.ray.container).items()):
            # One annotation for each setting: two that happen to be equal need two.
            missing += [f"{key}={value}"] if not told[value] else []
            told[value] -= 1 if told[value] else 0
        if missing:
            yield Flaw(
                pod.thing,
                f"{', '.join(missing)} in no annotation {_ANNOTATION}... of the pods, so that a change reaches none "
                "that runs: copy it there by a replacement",
            )


def cache_volume(overlay: Rendered) -> Iterator[Flaw]:
    """The node cache lies on a volume: in the image's layer it could not be written."""
    for pod in pod_templates(overlay):
        for container in pod.containers if pod.ray else ():
            cache = variables(overlay, container).get("RAG_STACK_CACHE")
            if cache and mount_of(container, cache) is None:
                yield Flaw(pod.where(container), f"RAG_STACK_CACHE is {cache}, where no volume is mounted: mount one")


def file_root(overlay: Rendered) -> Iterator[Flaw]:
    """Artifacts in a folder are seen by all who are told of it.

    A RayJob that is a text in a ConfigMap has the volume from create_rayjob.py, which a Job tells the claim.
    """
    texts = embedded(overlay.documents) if _tells_a_claim(overlay) else ()
    for pod in pod_templates(overlay):
        if pod.owner in texts:
            continue
        for container in pod.containers:
            root = urlsplit(str(variables(overlay, container).get("RAG_STACK_ROOT") or ""))
            told = ENVIRONMENT in _sources(container)
            if told and root.scheme == "file" and mount_of(container, root.path) is None:
                yield Flaw(
                    pod.where(container),
                    f"RAG_STACK_ROOT is file://{root.path}, where no volume is mounted: mount the artifacts there",
                )


RULES: Final[tuple[Rule, ...]] = (
    environment,
    same_environment,
    service_links,
    config_rolls,
    cache_volume,
    file_root,
)


def _tells_a_claim(overlay: Rendered) -> bool:
    told = {
        str(each.get("value"))
        for pod in pod_templates(overlay)
        for container in pod.containers
        for each in container.get("env") or []
        if each.get("name") == _CLAIM
    }
    return bool(told) and all(overlay.find("PersistentVolumeClaim", name) for name in told)


def config_data(overlay: Rendered, name: str) -> dict[str, str]:
    """A ConfigMap's data; none of one that is not there."""
    return dig(overlay.find("ConfigMap", name), "data") or {}


def variables(overlay: Rendered, container: Document) -> dict[str, Any]:
    """A container's variables, of ConfigMaps and its own."""
    together: dict[str, Any] = {}
    for name in _sources(container):
        together |= config_data(overlay, name)
    return together | {each["name"]: each.get("value") for each in container.get("env") or []}


def mount_of(container: Document, path: str) -> str | None:
    """The name of the volume on which a path of a container lies."""
    mounts = {
        str(each.get("mountPath")).rstrip("/"): str(each.get("name")) for each in container.get("volumeMounts") or []
    }
    around = [each for each in mounts if path.rstrip("/") == each or path.startswith(f"{each}/")]
    return mounts[max(around, key=len)] if around else None


def cache_volumes(overlay: Rendered, pod: PodTemplate) -> set[str]:
    """The names of a pod's volumes on which its node cache is."""
    found = (
        mount_of(container, str(variables(overlay, container)["RAG_STACK_CACHE"]))
        for container in pod.containers
        if variables(overlay, container).get("RAG_STACK_CACHE")
    )
    return {each for each in found if each is not None}


def _settings(overlay: Rendered, container: Document) -> dict[str, str]:
    """What decides something, of the ConfigMaps whose names stay when their data change."""
    names = [name for name in _sources(container) if not _HASHED.search(name)]
    data = ((key, value) for name in names for key, value in config_data(overlay, name).items())
    return {key: value for key, value in data if value and _DECIDES.fullmatch(key)}


def _sources(container: Document) -> list[str]:
    names = (dig(each, "configMapRef", "name") for each in container.get("envFrom") or [])
    return [str(each) for each in names if each]
