"""Every object that is named exists: among the documents, or among what the cluster's owner brings."""

from collections.abc import Iterator
from typing import Any, Final

from deploy.verify.pod_template import PodTemplate, pod_templates
from deploy.verify.prerequisite import CLAIMS, CONFIG_MAPS, PRIORITY_CLASSES, SECRETS, operator_services
from deploy.verify.ray_cluster import clusters
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, api_group, dig, is_wide, name_of, namespace_of, title


def volumes(overlay: Rendered) -> Iterator[Flaw]:
    """Each mount names a volume of its pod, and each volume is mounted."""
    for pod in pod_templates(overlay):
        declared = {str(each.get("name")) for each in pod.volumes}
        mounted = {str(name) for each in pod.containers for name in _mounts(each)}
        if pod.ray is not None and pod.ray.head:
            # The autoscaler runs beside Ray in the head's pod.
            for cluster in clusters(overlay):
                if cluster.head.thing == pod.ray.thing:
                    mounted |= {
                        str(each["name"]) for each in dig(cluster.spec, "autoscalerOptions", "volumeMounts") or []
                    }
        for name in sorted(mounted - declared):
            yield Flaw(pod.thing, f"mounts the volume {name!r}, which the pod has not: declare it, or correct the name")
        for name in sorted(declared - mounted):
            yield Flaw(pod.thing, f"no container mounts the volume {name!r}: mount it, or leave it out")


def config_maps(overlay: Rendered) -> Iterator[Flaw]:
    """Each ConfigMap is there, with the key that is asked of it."""
    for pod in pod_templates(overlay):
        for name, keys in _named(pod, kind="configMap"):
            document = overlay.find("ConfigMap", name, namespace=pod.namespace)
            if document is None and name not in CONFIG_MAPS:
                yield Flaw(pod.thing, f"uses ConfigMap {name}, which nothing makes: add it, or correct the name")
                continue
            made = {*(dig(document, "data") or {}), *(dig(document, "binaryData") or {})}
            known = made if document else CONFIG_MAPS[name]
            for key in sorted(keys - known):
                yield Flaw(pod.thing, f"asks ConfigMap {name} for {key!r}; it has {sorted(known)}: correct the key")


def secrets(overlay: Rendered) -> Iterator[Flaw]:
    """Each Secret is one that the README asks the cluster's owner for, or is made here."""
    for thing, name, keys in _secrets(overlay):
        made = overlay.find("Secret", name)
        if made is None and name not in SECRETS:
            yield Flaw(thing, f"uses Secret {name}, which is neither made nor a prerequisite: correct the name")
            continue
        known = {*(dig(made, "data") or {}), *(dig(made, "stringData") or {})} if made else set(SECRETS[name])
        for key in sorted(keys - known) if known else ():
            yield Flaw(thing, f"asks Secret {name} for {key!r}, which has {sorted(known)}: correct the key")


def claims(overlay: Rendered) -> Iterator[Flaw]:
    """Each claim is there, in the pod's namespace."""
    for pod in pod_templates(overlay):
        for volume in pod.volumes:
            name = dig(volume, "persistentVolumeClaim", "claimName")
            known = name in CLAIMS or overlay.find("PersistentVolumeClaim", name, namespace=pod.namespace)
            if name and not known:
                yield Flaw(pod.thing, f"uses claim {name}, which nothing makes: add the PersistentVolumeClaim")


def service_accounts(overlay: Rendered) -> Iterator[Flaw]:
    """Each service account is there."""
    for pod in pod_templates(overlay):
        name = pod.service_account
        if name != "default" and overlay.find("ServiceAccount", name, namespace=pod.namespace) is None:
            yield Flaw(pod.thing, f"runs as service account {name}, which nothing makes: add it, or correct the name")


def priority_classes(overlay: Rendered) -> Iterator[Flaw]:
    """Each priority class is there."""
    for pod in pod_templates(overlay):
        name = pod.spec.get("priorityClassName")
        if name and name not in PRIORITY_CLASSES and overlay.find("PriorityClass", name) is None:
            yield Flaw(pod.thing, f"has priority class {name}, which nothing makes: add it, or correct the name")


def storage_classes(overlay: Rendered) -> Iterator[Flaw]:
    """Each storage class is there: a cluster's own ones are called otherwise on each cloud, so that none is assumed."""
    for thing, spec in claim_specs(overlay):
        name = spec.get("storageClassName")
        if name and overlay.find("StorageClass", name) is None:
            yield Flaw(thing, f"wants storage class {name}, which nothing makes: add the StorageClass to the overlay")


def role_bindings(overlay: Rendered) -> Iterator[Flaw]:
    """Each binding binds a role that is there to an account that is there."""
    for binding in overlay.of("RoleBinding", "ClusterRoleBinding"):
        role = binding.get("roleRef") or {}
        namespace = namespace_of(binding) if role.get("kind") == "Role" else None
        if overlay.find(str(role.get("kind")), role.get("name"), namespace=namespace) is None:
            yield Flaw(title(binding), f"binds {role.get('kind')} {role.get('name')}, which nothing makes")
        for subject in binding.get("subjects") or []:
            if subject.get("kind") == "ServiceAccount":
                where = str(subject.get("namespace") or namespace_of(binding))
                if overlay.find("ServiceAccount", subject.get("name"), namespace=where) is None:
                    yield Flaw(title(binding), f"binds to account {where}/{subject.get('name')}, which nothing makes")


def backends(overlay: Rendered) -> Iterator[Flaw]:
    """Each Service behind a route is there, made here or by the operator."""
    made = {name_of(each) for each in overlay.known("Service")}
    made |= {name for each in overlay.known("RayService") for name in operator_services(name_of(each))}
    for route in overlay.of("HTTPRoute", "GRPCRoute", "Ingress"):
        for name in _backends(route):
            if name not in made:
                yield Flaw(title(route), f"sends to Service {name}, which neither an overlay nor the operator makes")


def mounted_paths(overlay: Rendered) -> Iterator[Flaw]:
    """No two volumes of a container lie at one path: the second hides the first."""
    for pod in pod_templates(overlay):
        for container in pod.containers:
            paths = [str(each.get("mountPath")).rstrip("/") for each in container.get("volumeMounts") or []]
            for path in sorted({each for each in paths if paths.count(each) > 1}):
                yield Flaw(pod.where(container), f"mounts two volumes at {path}: move one")


def namespaces(overlay: Rendered) -> Iterator[Flaw]:
    """An object says its namespace; Velero's own are in Velero's, which a kustomization's `namespace:` changes."""
    stack = {namespace_of(each) for each in overlay.known("RayService")}
    for each in overlay.documents:
        if is_wide(each):
            continue
        if not dig(each, "metadata", "namespace"):
            yield Flaw(
                title(each), "says no namespace, and goes to that of whoever applies it: write metadata.namespace"
            )
        elif api_group(each) == "velero.io" and namespace_of(each) in stack:
            yield Flaw(
                title(each),
                f"is in {namespace_of(each)}, where Velero does not look: give the generators of your overlay a "
                "namespace, and not the whole kustomization",
            )


RULES: Final[tuple[Rule, ...]] = (
    namespaces,
    volumes,
    mounted_paths,
    config_maps,
    secrets,
    claims,
    service_accounts,
    priority_classes,
    storage_classes,
    role_bindings,
    backends,
)


def claim_specs(overlay: Rendered) -> Iterator[tuple[str, Document]]:
    """Every claim's spec: those of their own, and those that are made for each pod."""
    for claim in overlay.of("PersistentVolumeClaim"):
        yield title(claim), claim.get("spec") or {}
    for holder in overlay.of("StatefulSet"):
        for each in dig(holder, "spec", "volumeClaimTemplates") or []:
            yield title(holder), each.get("spec") or {}
    for pod in pod_templates(overlay):
        for volume in pod.volumes:
            spec = dig(volume, "ephemeral", "volumeClaimTemplate", "spec")
            if spec:
                yield pod.thing, spec


def _mounts(container: Document) -> Iterator[Any]:
    for key in ("volumeMounts", "volumeDevices"):
        yield from (each.get("name") for each in container.get(key) or [])


def _named(pod: PodTemplate, *, kind: str) -> Iterator[tuple[str, set[str]]]:
    """The ConfigMaps or Secrets that a pod cannot start without, and the keys that it asks of each."""
    for volume in pod.volumes:
        for source in (volume, *(dig(volume, "projected", "sources") or [])):
            held = source.get(kind) or {}
            name = held.get("name") or held.get("secretName")
            if name and not held.get("optional"):
                yield str(name), {str(each["key"]) for each in held.get("items") or []}
    for container in pod.containers:
        yield from _in_environment(container, kind=kind)


def _in_environment(container: Document, *, kind: str) -> Iterator[tuple[str, set[str]]]:
    for each in container.get("envFrom") or []:
        reference = each.get(f"{kind}Ref") or {}
        if reference.get("name") and not reference.get("optional"):
            yield str(reference["name"]), set()
    for each in container.get("env") or []:
        reference = dig(each, "valueFrom", f"{kind}KeyRef") or {}
        if reference.get("name") and not reference.get("optional"):
            yield str(reference["name"]), {str(reference.get("key"))}


def _secrets(overlay: Rendered) -> Iterator[tuple[str, str, set[str]]]:
    for pod in pod_templates(overlay):
        yield from ((pod.thing, name, keys) for name, keys in _named(pod, kind="secret"))
        yield from ((pod.thing, str(each["name"]), set()) for each in pod.spec.get("imagePullSecrets") or [])
        for volume in pod.volumes:
            # An optional Secret whose name is wrong is never seen.
            name = dig(volume, "secret", "secretName")
            if name and dig(volume, "secret", "optional"):
                yield pod.thing, str(name), set()
        for container in pod.containers:
            for each in container.get("envFrom") or []:
                name = dig(each, "secretRef", "name")
                if name and dig(each, "secretRef", "optional"):
                    yield pod.thing, str(name), set()
    for cluster in clusters(overlay):
        name = dig(cluster.spec, "authOptions", "secretName")
        if name:
            yield cluster.thing, str(name), {"auth_token"}
        for field in ("redisPassword", "redisUsername"):
            reference = dig(cluster.spec, "gcsFaultToleranceOptions", field, "valueFrom", "secretKeyRef")
            if reference:
                yield cluster.thing, str(reference.get("name")), {str(reference.get("key"))}


def _backends(route: Document) -> Iterator[str]:
    for rule in dig(route, "spec", "rules") or []:
        for each in rule.get("backendRefs") or []:
            yield str(each.get("name"))
        for path in dig(rule, "http", "paths") or []:
            yield str(dig(path, "backend", "service", "name"))
