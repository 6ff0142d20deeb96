"""What Prometheus asks: ports that each of the pods declares, and behind which metrics are told."""

import inspect
from collections.abc import Iterator
from typing import Any, Final

from deploy.verify.environment import variables
from deploy.verify.pod_template import PodTemplate, pod_templates
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, namespace_of, title
from deploy.verify.selector import has_port, ports_of, selected
from rag_stack.activator.__main__ import main as activator_main

_HAPROXY: Final = "RAY_SERVE_HAPROXY_METRICS_PORT"
_ACTIVATOR: Final = "rag_stack.activator"


def monitors(overlay: Rendered) -> Iterator[Flaw]:
    """Each PodMonitor finds pods, and each of its endpoints is a port that each of them declares: no other is asked."""
    for monitor in overlay.of("PodMonitor"):
        pods = selected(overlay, dig(monitor, "spec", "selector"), _watched(monitor))
        if not pods:
            yield Flaw(title(monitor), "its selector matches no pod: correct the labels")
        for endpoint in dig(monitor, "spec", "podMetricsEndpoints") or []:
            port = endpoint.get("port") or endpoint.get("portNumber")
            for pod in pods if port else ():
                if not has_port([pod], port):
                    yield Flaw(
                        title(monitor),
                        f"port {port!r} is none of {pod.thing}, which declares {ports_of([pod])}: it would not be "
                        "asked; declare the port, or select other pods",
                    )


def activator_metrics(overlay: Rendered) -> Iterator[Flaw]:
    """The activator's metrics are on its own port: behind the one for clients its door asks the RayService."""
    for monitor in overlay.of("PodMonitor"):
        for pod in selected(overlay, dig(monitor, "spec", "selector"), _watched(monitor)):
            for container in filter(_is_activator, pod.containers):
                serves = int(variables(overlay, container).get("RAG_STACK_OPS_PORT") or _default_ops_port())
                for endpoint in dig(monitor, "spec", "podMetricsEndpoints") or []:
                    asked = _number(pod, endpoint)
                    if asked not in (None, serves):
                        yield Flaw(
                            title(monitor),
                            f"asks port {asked} of {pod.where(container)}, which has /metrics on {serves} "
                            "(RAG_STACK_OPS_PORT): name that one",
                        )


def proxy_metrics(overlay: Rendered) -> Iterator[Flaw]:
    """HAProxy's exporter is on a port that each pod of the RayService declares, since a replica may be on any."""
    for pod in pod_templates(overlay):
        if pod.ray is None or pod.owner.get("kind") != "RayService":
            continue
        port = variables(overlay, pod.ray.container).get(_HAPROXY)
        if port and not has_port([pod], int(port)):
            yield Flaw(pod.thing, f"declares no port {port}, which is {_HAPROXY}: add it to the container's ports")


RULES: Final[tuple[Rule, ...]] = (monitors, activator_metrics, proxy_metrics)


def _watched(monitor: Document) -> str | None:
    names = dig(monitor, "spec", "namespaceSelector", "matchNames")
    if dig(monitor, "spec", "namespaceSelector", "any"):
        return None
    return str(names[0]) if names else namespace_of(monitor)


def _is_activator(container: Document) -> bool:
    return _ACTIVATOR in [*(container.get("command") or []), *(container.get("args") or [])]


def _default_ops_port() -> int:
    return int(inspect.signature(activator_main).parameters["ops_port"].default)


def _number(pod: PodTemplate, endpoint: Document) -> Any:
    """The number of the port that an endpoint asks; None where the pod has none of that name."""
    named = (each.get("containerPort") for each in pod.ports if each.get("name") == endpoint.get("port"))
    return endpoint.get("portNumber") or next(named, None)
