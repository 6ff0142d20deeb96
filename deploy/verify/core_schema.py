"""Kubernetes' own kinds against the schemas of its release, strictly: unknown fields are errors."""

import functools
import json
from collections.abc import Iterator
from typing import Final

import kubernetes_validate  # type: ignore[import-untyped]

from deploy.verify.prerequisite import is_custom
from deploy.verify.rendered import Document, Flaw, Rendered, api_group, dig, title

KUBERNETES: Final = "1.37"


def core_fields(overlay: Rendered) -> Iterator[Flaw]:
    """Each document that is not of a custom kind is one that the API server takes."""
    for document in overlay.documents:
        if not is_custom(api_group(document)):
            wrong = _judged(json.dumps(document, sort_keys=True, default=str))
            if wrong:
                yield Flaw(title(document), wrong)


def pods_of_ray(overlay: Rendered) -> Iterator[Flaw]:
    """The pods inside Ray's kinds, which this can judge also where no custom definition is at hand."""
    for document in overlay.documents:
        if api_group(document) != "ray.io":
            continue
        for where, template in _templates(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template.get("spec")}
            wrong = _judged(json.dumps(pod, sort_keys=True, default=str))
            if wrong:
                yield Flaw(f"{title(document)} {where}", wrong)


RULES: Final = (core_fields, pods_of_ray)


def _templates(document: Document) -> Iterator[tuple[str, Document]]:
    submitter = dig(document, "spec", "submitterPodTemplate")
    if submitter:
        yield "submitter", submitter
    for key in ("rayClusterConfig", "rayClusterSpec"):
        head = dig(document, "spec", key, "headGroupSpec", "template")
        if head:
            yield "head", head
        for group in dig(document, "spec", key, "workerGroupSpecs") or []:
            yield f"group {group.get('groupName')}", group.get("template") or {}


# Overlays share most of their documents.
@functools.lru_cache(maxsize=4096)
def _judged(text: str) -> str:
    document = json.loads(text)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as exc:
        place = ".".join(map(str, exc.path)) or "the document"
        return f"{place}: {_short(exc.message)}: see `kubectl explain` of Kubernetes {KUBERNETES}"
    except kubernetes_validate.SchemaNotFoundError as exc:
        return f"Kubernetes {KUBERNETES} has no kind {exc.kind} in {exc.api_version}: correct apiVersion or kind"
    return ""


def _short(message: str) -> str:
    return message if len(message) <= 300 else f"{message[:150]} ... {message[-140:]}"
