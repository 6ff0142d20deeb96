"""Rights: each program has the verbs that its calls need, and no account has more than is good for it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from deploy.verify.pod_template import PodTemplate, pod_templates
from deploy.verify.ray_cluster import clusters
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, name_of, namespace_of, title


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one kind of object; on those of some names, where these are enough."""

    group: str
    resource: str
    verb: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


# What Ray's autoscaler calls: it watches the pods, and writes how many workers there shall be into the RayCluster.
AUTOSCALER: Final = (
    Right("", "pods", "get"),
    Right("", "pods", "list"),
    Right("", "pods", "watch"),
    Right("ray.io", "rayclusters", "get"),
    Right("ray.io", "rayclusters", "patch"),
)
# Any one object, whose name the caller is told.
_SOME: Final = ("<one>",)
# What the scripts beside the manifests call, by the script's name.
SCRIPTS: Final[dict[str, tuple[Right, ...]]] = {
    "create_rayjob.py": (Right("ray.io", "rayjobs", "create"), Right("ray.io", "rayjobs", "get")),
    "free_volumes.py": tuple(Right("", "persistentvolumes", verb, _SOME) for verb in ("get", "patch")),
    "take_snapshot.py": (
        Right("snapshot.storage.k8s.io", "volumesnapshots", "create"),
        Right("snapshot.storage.k8s.io", "volumesnapshots", "get", _SOME),
    ),
}
_SCRIPT: Final = re.compile(r"([\w.-]+\.(?:py|sh))\b")
# How a script that asks the API server can be told.
_ASKS: Final = ("/apis/", "/api/v1", "kubectl ")
# Who may do these is whoever he wants to be.
_POWERFUL: Final = frozenset({"escalate", "bind", "impersonate"})


def autoscaler_rights(overlay: Rendered) -> Iterator[Flaw]:
    """The autoscaler runs in the head's pod, and so as the head's account."""
    for cluster in clusters(overlay):
        account = str(cluster.head.pod.get("serviceAccountName") or "")
        if cluster.autoscales and account:
            yield from _lacking(overlay, cluster.head.thing, account, namespace_of(cluster.owner), AUTOSCALER)


def activator_rights(overlay: Rendered) -> Iterator[Flaw]:
    """The activator has what its own code says that it calls."""
    for pod in pod_templates(overlay):
        for container in pod.containers:
            if _is_activator(container):
                needs = activator_needs(overlay, container)
                yield from _lacking(overlay, pod.thing, pod.service_account, pod.namespace, needs)


def script_rights(overlay: Rendered) -> Iterator[Flaw]:
    """A script that asks the API server may do what it asks for."""
    for pod in pod_templates(overlay):
        for name, text in _scripts(overlay, pod):
            if name in SCRIPTS:
                yield from _lacking(overlay, pod.thing, pod.service_account, pod.namespace, SCRIPTS[name])
            elif any(each in text for each in _ASKS):
                yield Flaw(pod.thing, f"nobody knows what {name} asks the API server for: list it in rbac.SCRIPTS")


def wide_rights(overlay: Rendered) -> Iterator[Flaw]:
    """No role says `*`, reads Secrets, or may give itself more."""
    for role in overlay.of("Role", "ClusterRole"):
        for rule in role.get("rules") or []:
            for field in ("apiGroups", "resources", "verbs"):
                if "*" in (rule.get(field) or []):
                    yield Flaw(title(role), f"{field} has '*': list what is needed")
            if "secrets" in (rule.get("resources") or []) and not rule.get("resourceNames"):
                yield Flaw(title(role), "may read every Secret of the namespace: name them in resourceNames")
            for verb in sorted(_POWERFUL & set(rule.get("verbs") or [])):
                yield Flaw(title(role), f"has the verb {verb}, which gives everything: leave it out")
    for binding in overlay.of("ClusterRoleBinding"):
        if dig(binding, "roleRef", "name") in ("cluster-admin", "admin", "edit"):
            yield Flaw(title(binding), f"binds {dig(binding, 'roleRef', 'name')}: bind a Role with what is needed")


def mounted_tokens(overlay: Rendered) -> Iterator[Flaw]:
    """A pod whose account may do nothing does not carry its token; one whose programs call the API does."""
    for pod in pod_templates(overlay):
        account = overlay.find("ServiceAccount", pod.service_account, namespace=pod.namespace)
        carries = pod.spec.get(
            "automountServiceAccountToken", (account or {}).get("automountServiceAccountToken", True)
        )
        calls = _calls_the_api(overlay, pod)
        if carries and not calls:
            yield Flaw(
                pod.thing, "carries an account's token that it has no use for: automountServiceAccountToken: false"
            )
        if calls and not carries and not _has_token_of_its_own(pod):
            yield Flaw(
                pod.thing, "calls the API server without its account's token: automountServiceAccountToken: true"
            )


RULES: Final[tuple[Rule, ...]] = (autoscaler_rights, activator_rights, script_rights, wide_rights, mounted_tokens)


def activator_needs(overlay: Rendered, container: Document) -> tuple[Right, ...]:
    """What the activator's code says that it calls, for the RayService that is there."""
    try:
        from rag_stack.activator.permissions import permissions
    except ImportError:  # not in this checkout
        return ()
    service = next((name_of(each) for each in overlay.known("RayService")), "rag-stack")
    return tuple(
        Right(each.group, each.resource, verb, each.names)
        for each in permissions(service=service, lease=_lease(container))
        for verb in each.verbs
    )


def _lacking(overlay: Rendered, thing: str, account: str, namespace: str, needs: tuple[Right, ...]) -> Iterator[Flaw]:
    granted = [rule for role in _roles(overlay, account, namespace) for rule in role.get("rules") or []]
    for need in needs:
        if not any(_grants(rule, need) for rule in granted):
            yield Flaw(thing, f"account {account} may not {need}, which the program calls: add it to its Role")


def _roles(overlay: Rendered, account: str, namespace: str) -> Iterator[Document]:
    for binding in overlay.known("RoleBinding", "ClusterRoleBinding"):
        if binding["kind"] == "RoleBinding" and namespace_of(binding) != namespace:
            continue
        for subject in binding.get("subjects") or []:
            at = subject.get("namespace") or namespace_of(binding)
            if (subject.get("kind"), subject.get("name"), at) == ("ServiceAccount", account, namespace):
                role = overlay.find(dig(binding, "roleRef", "kind"), dig(binding, "roleRef", "name"))
                yield role or {}


def _grants(rule: Document, need: Right) -> bool:
    """A creation has no name yet; a list or watch has one if that is what it selects."""
    named = rule.get("resourceNames")
    if named and (need.verb == "create" or not (need.names == _SOME or set(need.names) & set(named))):
        return False
    return all(
        wanted in (rule.get(field) or []) or "*" in (rule.get(field) or [])
        for field, wanted in (("apiGroups", need.group), ("resources", need.resource), ("verbs", need.verb))
    )


def _is_activator(container: Document) -> bool:
    return "rag_stack.activator" in _command(container)


def _lease(container: Document) -> str:
    """The lease's name, as the activator is told it."""
    told = {each.get("name"): each.get("value") for each in container.get("env") or []}
    return str(told.get("RAG_STACK_LEASE") or "rag-stack-activator")


def _command(container: Document) -> str:
    return " ".join(map(str, [*(container.get("command") or []), *(container.get("args") or [])]))


def _calls_the_api(overlay: Rendered, pod: PodTemplate) -> bool:
    if pod.ray is not None:
        return pod.ray.head and any(each.autoscales and each.head.thing == pod.ray.thing for each in clusters(overlay))
    return any(name in SCRIPTS for name, _ in _scripts(overlay, pod)) or any(map(_is_activator, pod.containers))


def _has_token_of_its_own(pod: PodTemplate) -> bool:
    """Mounted by the pod itself, for so long as it says."""
    sources = [source for each in pod.volumes for source in dig(each, "projected", "sources") or []]
    return any("serviceAccountToken" in each for each in sources)


def _scripts(overlay: Rendered, pod: PodTemplate) -> Iterator[tuple[str, str]]:
    """The scripts that a pod's containers run, by their name, and their text where a ConfigMap of the pod has it."""
    texts: dict[str, str] = {}
    for volume in pod.volumes:
        holder = overlay.find("ConfigMap", dig(volume, "configMap", "name"), namespace=pod.namespace)
        texts |= dig(holder, "data") or {}
    for name in sorted({found for each in pod.containers for found in _SCRIPT.findall(_command(each))}):
        yield name, texts.get(name, "")
