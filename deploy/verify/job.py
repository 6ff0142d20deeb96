"""What jobs are told about a release: what they warm is what it names, and they wait for as long as it may take."""

import shlex
from collections.abc import Iterator
from functools import cache
from typing import Final

from deploy.verify.pod_template import PodTemplate, pod_templates
from deploy.verify.render import KUBERAY
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig
from deploy.verify.serve_config import serve_configs
from rag_stack.config import Release, load_deployed_release
from rag_stack.errors import ConfigError

_WARM: Final = ["rag-stack", "cache", "warm"]
_APPLY: Final = ["rag-stack", "release", "apply"]
_KINDS: Final = ("models/", "indexes/")


def seed_names(overlay: Rendered) -> Iterator[Flaw]:
    """A cache is warmed with all that the release names, and with nothing else."""
    wanted = {name for release in _releases(overlay) for name in _names(release)}
    for pod, container in _containers(overlay):
        arguments = _arguments(container, _WARM)
        told = {"/".join(each.split("/")[:2]) for each in arguments or () if each.startswith(_KINDS)}
        if not told or not wanted or pod.ray is not None:
            continue
        for each in sorted(told - wanted):
            yield Flaw(pod.where(container), f"warms {each}, which the release does not name: {sorted(wanted)}")
        for each in sorted(wanted - told):
            yield Flaw(pod.where(container), f"does not warm {each}, which the release names: add it")


def apply_deadline(overlay: Rendered) -> Iterator[Flaw]:
    """Who follows a rollout is not ended before it."""
    for pod, container in _containers(overlay):
        if "--wait" not in (_arguments(container, _APPLY) or ()):
            continue
        longest = max([longest_rollout_s(), *(each.rollout.limit_s for each in _releases(overlay))])
        deadline = _job(pod.owner).get("activeDeadlineSeconds")
        if deadline is None or deadline <= longest:
            yield Flaw(
                pod.thing,
                f"activeDeadlineSeconds {deadline} is not over {longest:g}, the longest rollout.limit_s of an overlay: "
                "raise it",
            )


RULES: Final[tuple[Rule, ...]] = (seed_names, apply_deadline)


@cache
def longest_rollout_s() -> float:
    """Of all overlays' releases, the longest that a rollout may take."""
    return max((each.rollout.limit_s for each in _written()), default=0.0)


def _written() -> Iterator[Release]:
    """The releases of every serve.yaml. One that is wrong is found where it is rendered."""
    for path in sorted(KUBERAY.rglob("serve.yaml")):
        try:
            yield load_deployed_release(path)
        except ConfigError:
            continue


def _job(owner: Document) -> Document:
    """A Job's spec, or that of a CronJob's Jobs."""
    return dig(owner, "spec", "jobTemplate", "spec") or owner.get("spec") or {}


def _releases(overlay: Rendered) -> list[Release]:
    """Those that run, or are applied already."""
    known = Rendered(overlay.name, (*overlay.documents, *overlay.beside))
    found = (each.release for each in serve_configs(known))
    return [each for each in found if each is not None]


def _names(release: Release) -> Iterator[str]:
    yield from (f"models/{each.name}" for each in (release.model, release.embedder))
    yield from (f"indexes/{each.index}" for each in release.stores)


def _containers(overlay: Rendered) -> Iterator[tuple[PodTemplate, Document]]:
    return ((pod, container) for pod in pod_templates(overlay) for container in pod.containers)


def _arguments(container: Document, command: list[str]) -> list[str] | None:
    """The words after a command, in the container's own or in a shell's text; None where it is not there."""
    told = [*(container.get("command") or []), *(container.get("args") or [])]
    words = [word for each in told for word in (_words(each) if " " in each else [each])]
    for at in range(len(words)):
        if words[at : at + len(command)] == command:
            return words[at + len(command) :]
    return None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()
