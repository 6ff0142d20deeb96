"""What the manifests may name although they do not make it: the cluster's owner brings it, as the README says."""

from typing import Final

# By reference, never in the repository: the keys that each must have. An empty set: any.
SECRETS: Final[dict[str, frozenset[str]]] = {
    "rag-stack-s3": frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"}),
    "rag-stack-keys": frozenset({"api", "admin"}),
    "rag-stack-ray-token": frozenset({"auth_token"}),
    "rag-stack-redis": frozenset({"password"}),
}
# By Kubernetes in every namespace; by the command that stands in jobs/release-apply.yaml.
CONFIG_MAPS: Final = {"kube-root-ca.crt": frozenset({"ca.crt"}), "rag-stack-release": frozenset({"serve.yaml"})}
# What the owner fills himself: the models of jobs/model-import.yaml.
CLAIMS: Final = frozenset({"models"})
# Labels that the owner puts on the pods, his own, that may ask.
INVITED: Final = ({"rag-stack/client": "true"},)
PRIORITY_CLASSES: Final = frozenset({"system-cluster-critical", "system-node-critical"})
# Groups of kinds that are not Kubernetes' own. Those whose definitions are not stored are named in the table's notes.
CUSTOM_GROUPS: Final = frozenset(
    {
        "ray.io",
        "snapshot.storage.k8s.io",
        "groupsnapshot.storage.k8s.io",
        "velero.io",
        "monitoring.coreos.com",
        "gateway.networking.k8s.io",
        "cilium.io",
        "keda.sh",
        "openebs.io",
    }
)


def is_custom(group: str) -> bool:
    """Whether a custom resource definition, and not Kubernetes, says what a group's kinds are."""
    return group in CUSTOM_GROUPS


def operator_services(rayservice: str) -> tuple[str, ...]:
    """The Services that KubeRay makes for a RayService."""
    return f"{rayservice}-head-svc", f"{rayservice}-serve-svc"
