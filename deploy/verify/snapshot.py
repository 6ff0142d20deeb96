"""Snapshots, restores and backups: drivers, classes, sources, and what Velero is told."""

from collections.abc import Iterator
from typing import Any, Final

from deploy.verify.environment import cache_volumes
from deploy.verify.pod_template import PodTemplate, known_templates, matches, pod_templates
from deploy.verify.reference import claim_specs
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, namespace_of, title

_NOT_BACKED_UP: Final = "velero.io/exclude-from-backup"


def snapshot_drivers(overlay: Rendered) -> Iterator[Flaw]:
    """A snapshot class is of a driver that provides volumes here."""
    provisioners = {str(each.get("provisioner")) for each in overlay.known("StorageClass")}
    for each in overlay.of("VolumeSnapshotClass"):
        if each.get("driver") not in provisioners:
            yield Flaw(title(each), f"driver {each.get('driver')} provides no volumes here, {_some(provisioners)} does")


def snapshot_classes(overlay: Rendered) -> Iterator[Flaw]:
    """A snapshot's class is there, and of the driver of its claim."""
    for each in overlay.of("VolumeSnapshot"):
        name = dig(each, "spec", "volumeSnapshotClassName")
        kind = overlay.find("VolumeSnapshotClass", name) if name else None
        if name and kind is None:
            yield Flaw(title(each), f"is of class {name}, which nothing makes: add the VolumeSnapshotClass")
        claim = overlay.find("PersistentVolumeClaim", dig(each, "spec", "source", "persistentVolumeClaimName"))
        provisioner = _provisioner(overlay, claim) if claim else None
        if kind is not None and provisioner not in (None, kind.get("driver")):
            yield Flaw(title(each), f"its claim is of {provisioner}, its class of {kind.get('driver')}: use the same")


def snapshot_sources(overlay: Rendered) -> Iterator[Flaw]:
    """What is snapshotted is there."""
    for each in overlay.of("VolumeSnapshot"):
        name = dig(each, "spec", "source", "persistentVolumeClaimName")
        if name and overlay.find("PersistentVolumeClaim", name, namespace=namespace_of(each)) is None:
            yield Flaw(title(each), f"is of claim {name}, which nothing makes: correct the name")


def restore_sources(overlay: Rendered) -> Iterator[Flaw]:
    """A claim is filled from a snapshot in the form that its group has; one by name may exist already."""
    for thing, spec in claim_specs(overlay):
        source = spec.get("dataSourceRef") or spec.get("dataSource") or {}
        if source.get("kind") == "VolumeSnapshot" and source.get("apiGroup") != "snapshot.storage.k8s.io":
            yield Flaw(thing, "a VolumeSnapshot as source needs apiGroup: snapshot.storage.k8s.io")
        copied = source.get("name") if source.get("kind") == "PersistentVolumeClaim" else None
        if copied and overlay.find("PersistentVolumeClaim", copied) is None:
            yield Flaw(thing, f"is a copy of claim {copied}, which nothing makes: correct the name")


def static_volumes(overlay: Rendered) -> Iterator[Flaw]:
    """A class without a provisioner binds late, and its volumes say which node they are on."""
    for each in overlay.of("StorageClass"):
        late = each.get("volumeBindingMode") == "WaitForFirstConsumer"
        if each.get("provisioner") == "kubernetes.io/no-provisioner" and not late:
            yield Flaw(title(each), "local volumes need volumeBindingMode: WaitForFirstConsumer")
    for each in overlay.of("PersistentVolume"):
        if dig(each, "spec", "local") and not dig(each, "spec", "nodeAffinity"):
            yield Flaw(title(each), "a local volume needs nodeAffinity: say its node")


def backup_schedules(overlay: Rendered) -> Iterator[Flaw]:
    """A backup takes a namespace and pods that are there, and its hooks run in containers that they have."""
    namespaces = {namespace_of(each) for each in overlay.known("RayService", "RayCluster", "RayJob", "Deployment")}
    for schedule in overlay.of("Schedule", "Backup"):
        template = dig(schedule, "spec", "template") or schedule.get("spec") or {}
        taken = set(template.get("includedNamespaces") or namespaces)
        for missing in sorted(taken - namespaces - {"*"}):
            yield Flaw(
                title(schedule), f"takes namespace {missing}, where nothing runs ({_some(namespaces)}): correct it"
            )
        for hook in dig(template, "hooks", "resources") or []:
            yield from _hook(overlay, schedule, hook)


def cache_backups(overlay: Rendered) -> Iterator[Flaw]:
    """A node cache is no part of a backup: it is filled again, and nobody restores the claim of a pod that is gone."""
    said = f'has no label {_NOT_BACKED_UP}: "true": a backup would copy a cache'
    for pod in pod_templates(overlay):
        caches = cache_volumes(overlay, pod)
        for volume in pod.volumes:
            made = dig(volume, "ephemeral", "volumeClaimTemplate")
            if made is not None and not _is_left_out(made):
                yield Flaw(pod.thing, f"the claim of its volume {volume.get('name')} {said}")
            name = dig(volume, "persistentVolumeClaim", "claimName")
            claim = overlay.find("PersistentVolumeClaim", name, namespace=pod.namespace) if name else None
            if claim is not None and volume.get("name") in caches and not _is_left_out(claim):
                yield Flaw(title(claim), said)


RULES: Final[tuple[Rule, ...]] = (
    snapshot_drivers,
    snapshot_classes,
    snapshot_sources,
    restore_sources,
    static_volumes,
    backup_schedules,
    cache_backups,
)


def _provisioner(overlay: Rendered, claim: Document) -> str | None:
    name = dig(claim, "spec", "storageClassName")
    kind = overlay.find("StorageClass", name) if name else None
    return str(kind.get("provisioner")) if kind else None


def _is_left_out(claim: Document) -> bool:
    return bool(dig(claim, "metadata", "labels", _NOT_BACKED_UP) == "true")


def _hook(overlay: Rendered, schedule: Document, hook: Document) -> Iterator[Flaw]:
    pods = [each for each in known_templates(overlay) if matches(hook.get("labelSelector"), each.labels)]
    if not pods:
        yield Flaw(title(schedule), f"hook {hook.get('name')} selects no pod: correct labelSelector")
        return
    for action in (*(hook.get("pre") or []), *(hook.get("post") or [])):
        name = dig(action, "exec", "container")
        for pod in pods if name else ():
            if name not in _container_names(pod):
                yield Flaw(
                    title(schedule), f"hook {hook.get('name')} runs in {name!r}, {pod.thing} has none: correct it"
                )


def _container_names(pod: PodTemplate) -> list[Any]:
    return [each.get("name") for each in pod.containers]


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
