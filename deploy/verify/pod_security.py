"""Each pod under the restricted profile of Kubernetes' pod security, bounded, and of a fixed image."""

from collections.abc import Iterator
from typing import Any, Final

from deploy.verify.pod_template import PodTemplate, pod_templates
from deploy.verify.ray_cluster import clusters
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, title

_VOLUMES: Final = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
_SECCOMP: Final = ("RuntimeDefault", "Localhost")


def not_root(overlay: Rendered) -> Iterator[Flaw]:
    """Nobody runs as root."""
    for pod, container in _containers(overlay):
        if _said(pod, container, "runAsNonRoot") is not True:
            yield Flaw(pod.where(container), "may run as root: securityContext.runAsNonRoot: true")
        if _said(pod, container, "runAsUser") == 0:
            yield Flaw(pod.where(container), "runs as user 0: securityContext.runAsUser: 1000")


def seccomp(overlay: Rendered) -> Iterator[Flaw]:
    """System calls are filtered."""
    for pod, container in _containers(overlay):
        if dig(_said(pod, container, "seccompProfile"), "type") not in _SECCOMP:
            yield Flaw(pod.where(container), "has no seccomp profile: seccompProfile: {type: RuntimeDefault}")


def privilege(overlay: Rendered) -> Iterator[Flaw]:
    """Nobody has a capability, or gets one."""
    for where, context in _contexts(overlay):
        if context.get("allowPrivilegeEscalation") is not False:
            yield Flaw(where, "may gain privileges: securityContext.allowPrivilegeEscalation: false")
        if "ALL" not in (dig(context, "capabilities", "drop") or []) or context.get("privileged"):
            yield Flaw(where, "keeps capabilities: securityContext.capabilities: {drop: [ALL]}, not privileged")
        if set(dig(context, "capabilities", "add") or []) - {"NET_BIND_SERVICE"}:
            yield Flaw(where, f"adds capabilities {dig(context, 'capabilities', 'add')}: leave them out")


def read_only_root(overlay: Rendered) -> Iterator[Flaw]:
    """What is written goes into a volume."""
    for where, context in _contexts(overlay):
        if context.get("readOnlyRootFilesystem") is not True:
            yield Flaw(where, "may write into its image: readOnlyRootFilesystem: true, and a volume for what it writes")


def host(overlay: Rendered) -> Iterator[Flaw]:
    """Nothing of the node's is shared."""
    for pod in pod_templates(overlay):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field):
                yield Flaw(pod.thing, f"shares the node's {field.removeprefix('host')}: leave {field} out")
        for volume in pod.volumes:
            kinds = set(volume) - {"name"}
            if kinds - _VOLUMES:
                yield Flaw(
                    pod.thing, f"volume {volume.get('name')} is a {'/'.join(kinds)}, which restricted pods may not have"
                )
        for container in pod.containers:
            if any(each.get("hostPort") for each in container.get("ports") or []):
                yield Flaw(pod.where(container), "takes a port of the node: leave hostPort out")


def submitter(overlay: Rendered) -> Iterator[Flaw]:
    """The operator's own submitter has no security context, so that a restricted namespace refuses it."""
    for job in overlay.of("RayJob"):
        own = dig(job, "spec", "submitterPodTemplate")
        if dig(job, "spec", "submissionMode") in (None, "K8sJobMode") and not own:
            yield Flaw(
                title(job), "a restricted namespace refuses the operator's submitter: write a submitterPodTemplate"
            )


def namespace_profile(overlay: Rendered) -> Iterator[Flaw]:
    """The API server holds the namespace to the profile."""
    for document in overlay.of("Namespace"):
        if dig(document, "metadata", "labels", "pod-security.kubernetes.io/enforce") != "restricted":
            yield Flaw(title(document), "enforces nothing: label pod-security.kubernetes.io/enforce: restricted")


def bounded(overlay: Rendered) -> Iterator[Flaw]:
    """Each container asks for CPU and memory, and is held to its memory."""
    for pod, container in _containers(overlay):
        for kind, names in (("requests", ("cpu", "memory")), ("limits", ("memory",))):
            for name in names:
                if not dig(container, "resources", kind, name):
                    yield Flaw(pod.where(container), f"has no resources.{kind}.{name}: say how much it needs")
    for cluster in clusters(overlay):
        if cluster.autoscales and not dig(cluster.spec, "autoscalerOptions", "resources", "limits", "memory"):
            yield Flaw(f"{cluster.thing} autoscaler", "has no resources.limits.memory: say how much it may have")


def pinned_images(overlay: Rendered) -> Iterator[Flaw]:
    """An image is one version of it."""
    for pod, container in _containers(overlay):
        image = str(container.get("image") or "")
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            yield Flaw(pod.where(container), f"image {image!r} is not pinned: give a version, or a digest")


RULES: Final[tuple[Rule, ...]] = (
    not_root,
    seccomp,
    privilege,
    read_only_root,
    host,
    submitter,
    namespace_profile,
    bounded,
    pinned_images,
)


def _containers(overlay: Rendered) -> Iterator[tuple[PodTemplate, Document]]:
    return ((pod, container) for pod in pod_templates(overlay) for container in pod.containers)


def _contexts(overlay: Rendered) -> Iterator[tuple[str, Document]]:
    """Each container's own security context, the autoscaler's among them."""
    for pod, container in _containers(overlay):
        yield pod.where(container), container.get("securityContext") or {}
    for cluster in clusters(overlay):
        if cluster.autoscales:
            yield f"{cluster.thing} autoscaler", dig(cluster.spec, "autoscalerOptions", "securityContext") or {}


def _said(pod: PodTemplate, container: Document, field: str) -> Any:
    """A container's word, or else its pod's."""
    own = dig(container, "securityContext", field)
    return own if own is not None else dig(pod.spec, "securityContext", field)
