"""Every Ray cluster that an overlay would start, whoever asks for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deploy.verify.rendered import Document, Rendered, dig, title

# Where each kind has the cluster that it starts.
_SPECS: dict[str, tuple[str, ...]] = {
    "RayCluster": ("spec",),
    "RayService": ("spec", "rayClusterConfig"),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """The head, or one worker group."""

    thing: str
    spec: Document
    head: bool

    @property
    def name(self) -> str:
        """`head`, or the worker group's name."""
        return "head" if self.head else str(self.spec.get("groupName", ""))

    @property
    def start_params(self) -> dict[str, str]:
        """What `ray start` is told."""
        return self.spec.get("rayStartParams") or {}

    @property
    def pod(self) -> Document:
        """The spec of the group's pods."""
        return dig(self.spec, "template", "spec") or {}

    @property
    def container(self) -> Document:
        """Ray's container: the first."""
        return dig(self.pod, "containers", 0) or {}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A RayClusterSpec and the object that holds it."""

    owner: Document
    spec: Document

    @property
    def thing(self) -> str:
        """The object that starts it."""
        return title(self.owner)

    @property
    def autoscales(self) -> bool:
        """Whether Ray's autoscaler adds and removes workers."""
        return bool(self.spec.get("enableInTreeAutoscaling"))

    @property
    def upgrade(self) -> str:
        """How a RayService changes its cluster; a second one beside the first unless it says otherwise."""
        if self.owner.get("kind") != "RayService":
            return "None"
        return str(dig(self.owner, "spec", "upgradeStrategy", "type") or "NewCluster")

    @property
    def head(self) -> Group:
        """The head's group."""
        return Group(f"{self.thing} head", self.spec.get("headGroupSpec") or {}, head=True)

    @property
    def workers(self) -> list[Group]:
        """The worker groups."""
        return [
            Group(f"{self.thing} group {each.get('groupName')}", each, head=False)
            for each in self.spec.get("workerGroupSpecs") or []
        ]

    @property
    def groups(self) -> list[Group]:
        """The head, then the workers."""
        return [self.head, *self.workers]


def clusters(overlay: Rendered) -> Iterator[Cluster]:
    """Each cluster of the overlay's own documents."""
    return (cluster for each in overlay.documents for cluster in clusters_of(each))


def clusters_of(document: Document) -> Iterator[Cluster]:
    """The cluster that a document starts, if it starts one."""
    spec: Any = dig(document, *_SPECS.get(str(document.get("kind")), ("",)))
    if isinstance(spec, dict):
        yield Cluster(document, spec)
