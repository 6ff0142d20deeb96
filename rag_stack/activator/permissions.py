"""All that the activator asks of the cluster: what its Role must allow, and need not exceed."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Permission:
    """Verbs on one kind of object. Without names they are allowed on any object of the namespace."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()

    def rule(self) -> dict[str, Any]:
        """As a rule of a Role."""
        named = {"resourceNames": list(self.names)} if self.names else {}
        return {"apiGroups": [self.group], "resources": [self.resource], **named, "verbs": list(self.verbs)}

    def allows(self, group: str, resource: str, verb: str, name: str) -> bool:
        """Whether it covers a call. A list or watch has a name if its field selector is `metadata.name=NAME`."""
        known = (group, resource) == (self.group, self.resource) and verb in self.verbs
        return known and (not self.names or name in self.names)


def permissions(*, service: str, lease: str) -> tuple[Permission, ...]:
    """What the code in this package calls. A `create` has no name yet, so RBAC cannot limit it to one."""
    return (
        Permission("ray.io", "rayservices", ("list", "patch", "watch"), (service,)),
        Permission("coordination.k8s.io", "leases", ("get", "update"), (lease,)),
        Permission("coordination.k8s.io", "leases", ("create",)),
    )
