"""Mistakes in what programs may do: too little for their calls, or more than the restricted profile allows."""

from typing import Final

from deploy.verify.mistakes.draft import Draft, Mistake


def _without_verb(draft: Draft, role: str, resource: str, verb: str) -> None:
    for rule in draft.one("Role", role)["rules"]:
        if resource in rule["resources"]:
            rule["verbs"] = [each for each in rule["verbs"] if each != verb]


def _autoscaler_without_patch(draft: Draft) -> None:
    for role in draft.documents:
        if role["kind"] == "Role" and any("rayclusters" in each["resources"] for each in role["rules"]):
            _without_verb(draft, role["metadata"]["name"], "rayclusters", "patch")


def _script(draft: Draft, text: str) -> None:
    draft.data("trial-job")["other.py"] = text
    pod = draft.spec("CronJob", "trial")["jobTemplate"]["spec"]["template"]["spec"]
    pod["containers"][0]["command"] = ["python", "/etc/trial/other.py"]


def _context(draft: Draft, **changes: object) -> None:
    container = draft.container("engine")
    container["securityContext"] = {**container.get("securityContext", {}), **changes}


def _pod_context(draft: Draft, **changes: object) -> None:
    pod = draft.pod("engine")
    pod["securityContext"] = {**pod.get("securityContext", {}), **changes}


MISTAKES: Final = (
    Mistake(
        "an autoscaler that may not change the RayCluster",
        "rbac",
        "autoscaler-rights",
        "patch rayclusters",
        _autoscaler_without_patch,
    ),
    Mistake(
        "an activator that may not watch the RayService",
        "rbac",
        "activator-rights",
        "watch rayservices",
        lambda draft: _without_verb(draft, "trial", "rayservices", "watch"),
    ),
    Mistake(
        "a schedule that may not create its job",
        "rbac",
        "script-rights",
        "create rayjobs",
        lambda draft: _without_verb(draft, "trial", "rayjobs", "create"),
    ),
    Mistake(
        "a script that asks the API server for nobody knows what",
        "rbac",
        "script-rights",
        "list it",
        lambda draft: _script(draft, "print(get('/apis/ray.io/v1/rayservices'))"),
    ),
    Mistake(
        "a role that may do anything",
        "rbac",
        "wide-rights",
        "verbs has '*'",
        lambda draft: draft.one("Role", "trial")["rules"][0].update(verbs=["*"]),
    ),
    Mistake(
        "a role that reads every Secret",
        "rbac",
        "wide-rights",
        "Secret",
        lambda draft: draft.one("Role", "trial")["rules"][0].update(
            apiGroups=[""], resources=["secrets"], verbs=["get"]
        ),
    ),
    Mistake(
        "a worker that carries a token",
        "rbac",
        "mounted-tokens",
        "no use",
        lambda draft: draft.pod("engine").update(automountServiceAccountToken=True),
    ),
    Mistake(
        "a container that may run as root",
        "security",
        "not-root",
        "runAsNonRoot",
        lambda draft: _pod_context(draft, runAsNonRoot=False),
    ),
    Mistake(
        "a pod without a seccomp profile",
        "security",
        "seccomp",
        "RuntimeDefault",
        lambda draft: _pod_context(draft, seccompProfile=None),
    ),
    Mistake(
        "a container that may gain privileges",
        "security",
        "privilege",
        "allowPrivilegeEscalation",
        lambda draft: _context(draft, allowPrivilegeEscalation=True),
    ),
    Mistake(
        "a container that keeps its capabilities",
        "security",
        "privilege",
        "capabilities",
        lambda draft: _context(draft, capabilities={}),
    ),
    Mistake(
        "an autoscaler without a security context",
        "security",
        "privilege",
        "autoscaler",
        lambda draft: draft.cluster["autoscalerOptions"].pop("securityContext"),
    ),
    Mistake(
        "an image that is written to",
        "security",
        "read-only-root",
        "readOnlyRootFilesystem",
        lambda draft: _context(draft, readOnlyRootFilesystem=False),
    ),
    Mistake(
        "a folder of the node",
        "security",
        "host",
        "hostPath",
        lambda draft: draft.pod("engine")["volumes"].append({"name": "nvme", "hostPath": {"path": "/mnt/nvme"}}),
    ),
    Mistake(
        "the network of the node",
        "security",
        "host",
        "hostNetwork",
        lambda draft: draft.pod("engine").update(hostNetwork=True),
    ),
    Mistake(
        "the operator's own submitter, which a restricted namespace refuses",
        "security",
        "submitter",
        "submitterPodTemplate",
        lambda draft: draft.spec("RayJob", "trial").pop("submitterPodTemplate"),
    ),
    Mistake(
        "a namespace that holds nobody to a profile",
        "security",
        "namespace-profile",
        "restricted",
        lambda draft: draft.one("Namespace")["metadata"].update(labels={}),
    ),
    Mistake(
        "a container without a limit of memory",
        "security",
        "bounded",
        "limits.memory",
        lambda draft: draft.container("control")["resources"].pop("limits"),
    ),
    Mistake(
        "an image without a version",
        "security",
        "pinned-images",
        "latest",
        lambda draft: draft.container("engine").update(image="registry.example:5000/rag-stack:latest"),
    ),
)
