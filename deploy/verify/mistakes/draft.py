"""An overlay's documents as somebody is about to change them."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from deploy.verify.render import complete
from deploy.verify.rendered import Document, Rendered, embedded, name_of


class Draft:
    """A copy of an overlay's documents that may be changed, with short ways to what is changed most."""

    def __init__(self, overlay: Rendered) -> None:
        self.name = overlay.name
        inside = embedded(overlay.documents)
        self.documents = copy.deepcopy([each for each in overlay.documents if each not in inside])

    def one(self, kind: str, name: str | None = None) -> Document:
        """The first object of a kind, or the one of this name. Raises LookupError."""
        for each in self.documents:
            if each.get("kind") == kind and name in (None, name_of(each)):
                return each
        raise LookupError(f"{self.name} has no {kind} {name or ''}")

    def spec(self, kind: str, name: str | None = None) -> Document:
        """Its spec."""
        found: Document = self.one(kind, name)["spec"]
        return found

    @property
    def cluster(self) -> Document:
        """The RayService's cluster."""
        found: Document = self.one("RayService")["spec"]["rayClusterConfig"]
        return found

    def group(self, name: str) -> Document:
        """`head`, or a worker group."""
        if name == "head":
            head: Document = self.cluster["headGroupSpec"]
            return head
        return next(each for each in self.cluster["workerGroupSpecs"] if each["groupName"] == name)

    def pod(self, group: str) -> Document:
        """The spec of a group's pods."""
        found: Document = self.group(group)["template"]["spec"]
        return found

    def container(self, group: str) -> Document:
        """Ray's container in it."""
        found: Document = self.pod(group)["containers"][0]
        return found

    def data(self, name: str) -> dict[str, str]:
        """A ConfigMap's data."""
        found: dict[str, str] = self.one("ConfigMap", name)["data"]
        return found

    def serve(self, change: Callable[[Document], Any]) -> None:
        """Change the parsed serveConfigV2."""
        spec = self.one("RayService")["spec"]
        # By JSON, so that what stands under one anchor is changed in one place alone.
        config = json.loads(json.dumps(yaml.safe_load(spec["serveConfigV2"])))
        change(config)
        spec["serveConfigV2"] = yaml.safe_dump(config)

    def release(self, change: Callable[[Document], Any]) -> None:
        """Change the release, in all applications at once."""

        def all_of_them(config: Document) -> None:
            for application in config["applications"]:
                change(application["args"]["release"])

        self.serve(all_of_them)

    def add(self, text: str) -> None:
        """More documents, a list of them."""
        self.documents.extend(copy.deepcopy(yaml.safe_load(text)))

    def rendered(self) -> Rendered:
        """The documents as they are now, with what is inside them."""
        return Rendered(self.name, complete(self.name, tuple(self.documents)).documents)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A slip, the check and rule that must find it, and a word that its message must have."""

    what: str
    check: str
    rule: str
    word: str
    seed: Callable[[Draft], Any]


def application(config: Document, name: str) -> Document:
    """An application of a serveConfigV2."""
    found: Document = next(each for each in config["applications"] if each["name"] == name)
    return found
