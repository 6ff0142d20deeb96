"""The storage overlays of deploy/kuberay: where each has a replica's artifacts after a loss.

deploy/kuberay/STORAGE.md says the same in prose; a test holds the two together.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Loss: TypeAlias = Literal["pod", "node", "zone"]
LOSSES: Final[tuple[Loss, ...]] = ("pod", "node", "zone")

# origin    the object store, one for all nodes; peers pass on what one of them has read
# shared    a volume that all nodes mount and that is the object store: the same, at its own rate
# volume    one storage pool behind all pods' volumes, whose bandwidth they share
# snapshot  a volume of the pod's own, filled lazily from a snapshot
# disk      the node cache, on a disk of the node that outlives the pod
# mirror    what the node itself has kept, read-only
# registry  an image that each node pulls before it has the mirror
Source: TypeAlias = Literal["origin", "shared", "volume", "snapshot", "disk", "mirror", "registry"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """From where a new replica has its models (weights and embedder) and its indexes, and what it waits for."""

    models: Source
    indexes: Source
    attaches: bool = False


@dataclass(frozen=True, slots=True)
class StorageOverlay:
    """One choice. `rank` orders by what it needs to be bought and operated, the least first; it is no price."""

    name: str
    rank: int
    needs: str
    pod: Recovery
    node: Recovery
    zone: Recovery

    def recovery(self, loss: Loss) -> Recovery:
        """After one loss."""
        match loss:
            case "pod":
                return self.pod
            case "node":
                return self.node
            case "zone":
                return self.zone


def _alike(name: str, rank: int, needs: str, recovery: Recovery) -> StorageOverlay:
    return StorageOverlay(name, rank, needs, recovery, recovery, recovery)


_ORIGIN: Final = Recovery("origin", "origin")
_ATTACHED: Final = Recovery("origin", "origin", attaches=True)
_RESTORED: Final = Recovery("snapshot", "snapshot", attaches=True)
_POOLED: Final = Recovery("volume", "volume", attaches=True)
_CACHED: Final = Recovery("disk", "disk")
_KEPT: Final = Recovery("mirror", "origin")
_PULLED: Final = Recovery("registry", "origin")
_SHARED: Final = Recovery("shared", "shared", attaches=True)

OVERLAYS: Final = (
    _alike("object-store", 1, "the object store", _ORIGIN),
    StorageOverlay("image-volume", 2, "a registry for the models", _KEPT, _PULLED, _PULLED),
    StorageOverlay("nvme", 3, "NVMe in the nodes", _CACHED, _ORIGIN, _ORIGIN),
    _alike("openebs-lvm", 3, "disks in the nodes, OpenEBS", _ATTACHED),
    _alike("ebs", 4, "a volume a pod", _ATTACHED),
    _alike("pd", 4, "a volume a pod", _ATTACHED),
    _alike("azure-disk", 4, "a volume a pod", _ATTACHED),
    _alike("ebs + warm-cache", 5, "a volume a pod, a snapshot", _RESTORED),
    _alike("pd + warm-cache", 5, "a volume a pod, a snapshot", _RESTORED),
    _alike("azure-disk + warm-cache", 5, "a volume a pod, a snapshot", _RESTORED),
    _alike("openebs-mayastor", 6, "three disks, OpenEBS", _ATTACHED),
    # Its pool is of one zone, as its StorageClass is, and the snapshot with it: without, the pods start cold.
    StorageOverlay("openebs-mayastor + warm-cache", 7, "three disks, OpenEBS, a snapshot", _POOLED, _POOLED, _ATTACHED),
    _alike("portworx", 8, "a Portworx cluster", _SHARED),
)
