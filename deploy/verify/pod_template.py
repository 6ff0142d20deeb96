"""Every pod that an overlay would start, with the labels that it would have."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from deploy.verify.ray_cluster import Cluster, Group, clusters_of
from deploy.verify.rendered import Document, Rendered, dig, namespace_of, title

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "RayJob": ("spec", "submitterPodTemplate"),
    "Pod": (),
}
# What the operator's pods listen on though no manifest says so.
_OPERATOR_PORTS = ({"name": "metrics", "containerPort": 8080},)


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """A pod's spec, its labels and annotations, and who starts it."""

    thing: str
    owner: Document
    spec: Document
    labels: dict[str, str]
    annotations: dict[str, str] = field(default_factory=dict)
    ray: Group | None = None

    @property
    def namespace(self) -> str:
        """Where it runs."""
        return namespace_of(self.owner)

    @property
    def containers(self) -> list[Document]:
        """All containers, those that run first among them."""
        return [*(self.spec.get("initContainers") or []), *(self.spec.get("containers") or [])]

    @property
    def volumes(self) -> list[Document]:
        """All volumes, with those that a StatefulSet makes for it."""
        claimed = dig(self.owner, "spec", "volumeClaimTemplates") or []
        return [*(self.spec.get("volumes") or []), *({"name": dig(each, "metadata", "name")} for each in claimed)]

    @property
    def ports(self) -> list[Document]:
        """All ports of its containers."""
        own = [port for each in self.containers for port in each.get("ports") or []]
        return [*own, *_OPERATOR_PORTS] if self.ray else own

    @property
    def service_account(self) -> str:
        """Whose rights its programs have."""
        return str(self.spec.get("serviceAccountName") or "default")

    def where(self, container: Document) -> str:
        """`Deployment/x container y`."""
        return f"{self.thing} container {container.get('name')}"


def pod_templates(overlay: Rendered) -> Iterator[PodTemplate]:
    """The pods of the overlay's own documents."""
    return _of(overlay.documents)


def known_templates(overlay: Rendered) -> Iterator[PodTemplate]:
    """The same, with those of what is applied already."""
    return _of((*overlay.documents, *overlay.beside))


def matches(selector: Any, labels: dict[str, str]) -> bool:
    """Whether a label selector, of either form, takes these labels."""
    plain = (selector or {}).get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in plain.items()):
        return False
    return all(_holds(each, labels) for each in (selector or {}).get("matchExpressions") or [])


def _of(documents: Iterable[Document]) -> Iterator[PodTemplate]:
    for document in documents:
        path = _TEMPLATES.get(str(document.get("kind")))
        template = dig(document, *path) if path is not None else None
        if isinstance(template, dict):
            metadata = template.get("metadata") or {}
            told = (metadata.get("labels") or {}, metadata.get("annotations") or {})
            yield PodTemplate(title(document), document, template.get("spec") or {}, *told)
        for cluster in clusters_of(document):
            yield from _of_cluster(document, cluster)


def _of_cluster(document: Document, cluster: Cluster) -> Iterator[PodTemplate]:
    for group in cluster.groups:
        own = dig(group.spec, "template", "metadata", "labels") or {}
        labels = {**_operator_labels(document, group), **own, **_fixed_labels(group)}
        annotations = dig(group.spec, "template", "metadata", "annotations") or {}
        yield PodTemplate(group.thing, document, group.pod, labels, annotations, ray=group)


def _operator_labels(document: Document, group: Group) -> dict[str, str]:
    """What the operator writes on a Ray pod unless the template says otherwise."""
    serves = {"ray.io/serve": "true"} if document.get("kind") == "RayService" else {}
    return {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/is-ray-node": "yes",
        "ray.io/originated-from-crd": str(document.get("kind")),
        "ray.io/originated-from-cr-name": str(dig(document, "metadata", "name")),
        **(serves if not group.head else {}),
    }


def _fixed_labels(group: Group) -> dict[str, str]:
    return {
        "ray.io/node-type": "head" if group.head else "worker",
        "ray.io/group": "headgroup" if group.head else group.name,
    }


def _holds(expression: Document, labels: dict[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels
