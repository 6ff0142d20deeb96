"""Labels that must match pods, and ports that these pods must have by name."""

from collections.abc import Iterator
from typing import Any, Final

from deploy.verify.pod_template import PodTemplate, known_templates, matches, pod_templates
from deploy.verify.prerequisite import INVITED, operator_services
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, name_of, namespace_of, title

# Known only once the operator has made a cluster.
_GENERATED: Final = ("ray.io/cluster", "ray.io/identifier")
_GATEWAY: Final = "gateway.networking.k8s.io/gateway-name"


def services(overlay: Rendered) -> Iterator[Flaw]:
    """Each Service finds pods, and each of its target ports is one of theirs."""
    for service in overlay.of("Service"):
        labels = dig(service, "spec", "selector")
        if not labels:
            continue
        pods = selected(overlay, {"matchLabels": labels}, namespace_of(service))
        if not pods:
            yield Flaw(title(service), f"its selector {labels} matches no pod: correct the labels")
        for port in dig(service, "spec", "ports") or [] if pods else ():
            target = port.get("targetPort", port.get("port"))
            if not has_port(pods, target):
                yield Flaw(title(service), f"targetPort {target} is no port of its pods, which have {ports_of(pods)}")


def network_policies(overlay: Rendered) -> Iterator[Flaw]:
    """Each policy finds pods; a port by name is theirs, or for what goes out, one of those it goes to."""
    for policy in overlay.of("NetworkPolicy"):
        pods = selected(overlay, dig(policy, "spec", "podSelector"), namespace_of(policy))
        if not pods:
            yield Flaw(title(policy), "its podSelector matches no pod: correct the labels")
            continue
        for rule in dig(policy, "spec", "ingress") or []:
            yield from _named_ports(policy, rule, pods)
        for rule in dig(policy, "spec", "egress") or []:
            yield from _named_ports(policy, rule, list(known_templates(overlay)))
        yield from _peers(overlay, policy)


def disruption_budgets(overlay: Rendered) -> Iterator[Flaw]:
    """Each budget protects a pod."""
    for budget in overlay.of("PodDisruptionBudget"):
        if not selected(overlay, dig(budget, "spec", "selector"), namespace_of(budget)):
            yield Flaw(title(budget), "its selector matches no pod, so it protects nothing: correct the labels")


def spread(overlay: Rendered) -> Iterator[Flaw]:
    """A pod that is to be spread from its like is one of its like."""
    for pod in pod_templates(overlay):
        for each in pod.spec.get("topologySpreadConstraints") or []:
            if not matches(each.get("labelSelector"), pod.labels):
                yield Flaw(pod.thing, "topologySpreadConstraints count other pods than this one: correct labelSelector")


def probe_ports(overlay: Rendered) -> Iterator[Flaw]:
    """A probe asks a port that its container has."""
    for pod in pod_templates(overlay):
        for container in pod.containers:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = dig(container, probe, "httpGet", "port") or dig(container, probe, "tcpSocket", "port")
                names = [each.get("name") for each in container.get("ports") or []]
                if isinstance(port, str) and port not in names:
                    yield Flaw(pod.where(container), f"{probe} asks port {port!r}, the container has {names}: name one")


def port_names(overlay: Rendered) -> Iterator[Flaw]:
    """A port's name is its own within a pod."""
    for pod in pod_templates(overlay):
        names = [str(each["name"]) for each in pod.ports if each.get("name")]
        own = [each for each in names if pod.ray is None or each != "metrics" or names.count(each) > 2]
        for name in sorted({each for each in own if own.count(each) > 1}):
            yield Flaw(pod.thing, f"two ports are called {name!r}: rename one")


def generated_labels(overlay: Rendered) -> Iterator[Flaw]:
    """Clusters of a RayService get a new name with each upgrade, so that a label with it matches once."""
    for document in overlay.of("Service", "PodMonitor", "NetworkPolicy", "PodDisruptionBudget"):
        for key in _GENERATED:
            if any(key in labels for labels in _label_maps(document.get("spec"))):
                yield Flaw(title(document), f"selects by {key}, whose value the operator makes: use ray.io/node-type")


def scalers(overlay: Rendered) -> Iterator[Flaw]:
    """What is scaled is there."""
    for scaler in overlay.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = dig(scaler, "spec", "scaleTargetRef") or {}
        if overlay.find(str(target.get("kind", "Deployment")), target.get("name")) is None:
            yield Flaw(title(scaler), f"scales {target.get('kind')} {target.get('name')}, which nothing makes")


def service_names(overlay: Rendered) -> Iterator[Flaw]:
    """A Service of ours does not have the name of one that the operator makes."""
    taken = {name for each in overlay.known("RayService") for name in operator_services(name_of(each))}
    for service in overlay.of("Service"):
        if name_of(service) in taken:
            yield Flaw(title(service), "the operator makes a Service of this name: rename it")


RULES: Final[tuple[Rule, ...]] = (
    services,
    network_policies,
    disruption_budgets,
    spread,
    probe_ports,
    port_names,
    generated_labels,
    scalers,
    service_names,
)


def selected(overlay: Rendered, selector: Any, namespace: str | None) -> list[PodTemplate]:
    """The pods that a selector takes; in all namespaces without one."""
    return [
        each
        for each in (*known_templates(overlay), *_gateways(overlay))
        if namespace in (None, each.namespace) and matches(_without_generated(selector), each.labels)
    ]


def has_port(pods: list[PodTemplate], port: Any) -> bool:
    """Whether one of the pods declares a port, by its name or by its number."""
    key = "name" if isinstance(port, str) else "containerPort"
    return any(each.get(key) == port for pod in pods for each in pod.ports)


def ports_of(pods: list[PodTemplate]) -> str:
    """What the pods declare, for a message."""
    return ", ".join(sorted({str(each.get("name", each.get("containerPort"))) for pod in pods for each in pod.ports}))


def _gateways(overlay: Rendered) -> Iterator[PodTemplate]:
    """The pods of a Gateway: its controller makes them, and the operator makes one for an upgrade in steps."""
    for document in overlay.known("Gateway"):
        yield PodTemplate(title(document), document, {}, {_GATEWAY: name_of(document)})
    for service in overlay.known("RayService"):
        if dig(service, "spec", "upgradeStrategy", "type") == "NewClusterWithIncrementalUpgrade":
            yield PodTemplate(f"{title(service)} gateway", service, {}, {_GATEWAY: f"{name_of(service)}-gateway"})


def _without_generated(selector: Any) -> Document:
    """What can be judged before the operator has made a cluster."""
    labels = (selector or {}).get("matchLabels") or {}
    return {**(selector or {}), "matchLabels": {key: each for key, each in labels.items() if key not in _GENERATED}}


def _named_ports(policy: Document, rule: Document, pods: list[PodTemplate]) -> Iterator[Flaw]:
    for each in rule.get("ports") or []:
        port = each.get("port")
        if isinstance(port, str) and not has_port(pods, port):
            yield Flaw(
                title(policy), f"port {port!r} is none of the pods', which have {ports_of(pods)}: name one of them"
            )


def _peers(overlay: Rendered, policy: Document) -> Iterator[Flaw]:
    """Pods of this namespace that are let in or gone to are there."""
    for side in ("ingress", "egress"):
        for rule in dig(policy, "spec", side) or []:
            for peer in (rule.get("from") or []) + (rule.get("to") or []):
                invited = dig(peer, "podSelector", "matchLabels") in INVITED
                inside = "podSelector" in peer and "namespaceSelector" not in peer and not invited
                if inside and not selected(overlay, peer["podSelector"], namespace_of(policy)):
                    yield Flaw(title(policy), f"{side} names pods {peer['podSelector']} that nothing makes: correct it")


def _label_maps(value: Any) -> Iterator[Document]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _label_maps(each)
    elif isinstance(value, list):
        for each in value:
            yield from _label_maps(each)
