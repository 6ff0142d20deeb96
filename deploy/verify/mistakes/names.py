"""Mistakes in names: what is named is not there, or what is selected is something else."""

from typing import Final

from deploy.verify.mistakes.draft import Draft, Mistake


def _mount(draft: Draft, volume: dict[str, object], *, path: str = "/mnt") -> None:
    draft.pod("engine")["volumes"].append({"name": "extra", **volume})
    draft.container("engine")["volumeMounts"].append({"name": "extra", "mountPath": path})


def _environment(draft: Draft, **reference: object) -> None:
    draft.container("control").setdefault("env", []).append({"name": "EXTRA", "valueFrom": reference})


def _trial_container(draft: Draft) -> dict[str, object]:
    found: dict[str, object] = draft.spec("Deployment", "trial")["template"]["spec"]["containers"][0]
    return found


MISTAKES: Final = (
    Mistake(
        "an object without a namespace",
        "references",
        "namespaces",
        "says no namespace",
        lambda draft: draft.one("Service", "trial")["metadata"].pop("namespace"),
    ),
    Mistake(
        "a Velero schedule in the stack's namespace",
        "references",
        "namespaces",
        "where Velero does not look",
        lambda draft: draft.one("Schedule")["metadata"].update(namespace="rag-stack"),
    ),
    Mistake(
        "a mount of a volume that the pod has not",
        "references",
        "volumes",
        "cach'",
        lambda draft: draft.container("engine")["volumeMounts"].append({"name": "cach", "mountPath": "/mnt"}),
    ),
    Mistake(
        "a volume that nobody mounts",
        "references",
        "volumes",
        "no container mounts",
        lambda draft: draft.pod("engine")["volumes"].append({"name": "spare", "emptyDir": {}}),
    ),
    Mistake(
        "two volumes at one path",
        "references",
        "mounted-paths",
        "/var/cache/rag-stack",
        lambda draft: _mount(draft, {"emptyDir": {}}, path="/var/cache/rag-stack"),
    ),
    Mistake(
        "a ConfigMap that nothing makes",
        "references",
        "config-maps",
        "spec-of-nothing",
        lambda draft: _mount(draft, {"configMap": {"name": "spec-of-nothing"}}),
    ),
    Mistake(
        "a key that a ConfigMap has not",
        "references",
        "config-maps",
        "RAG_STACK_WORKER_CPU'",
        lambda draft: _environment(draft, configMapKeyRef={"name": "rag-stack-size", "key": "RAG_STACK_WORKER_CPU"}),
    ),
    Mistake(
        "a Secret that is no prerequisite",
        "references",
        "secrets",
        "rag-stack-key,",
        lambda draft: _mount(draft, {"secret": {"secretName": "rag-stack-key"}}),
    ),
    Mistake(
        "an optional Secret of a wrong name, which is never seen",
        "references",
        "secrets",
        "rag-stack-s3s",
        lambda draft: draft.container("engine")["envFrom"].append(
            {"secretRef": {"name": "rag-stack-s3s", "optional": True}}
        ),
    ),
    Mistake(
        "a key that a Secret has not",
        "references",
        "secrets",
        "'passwd'",
        lambda draft: _environment(draft, secretKeyRef={"name": "rag-stack-redis", "key": "passwd"}),
    ),
    Mistake(
        "a claim that nothing makes",
        "references",
        "claims",
        "models-of-nobody",
        lambda draft: _mount(draft, {"persistentVolumeClaim": {"claimName": "models-of-nobody"}}),
    ),
    Mistake(
        "a service account that nothing makes",
        "references",
        "service-accounts",
        "rag-stak",
        lambda draft: draft.pod("control").update(serviceAccountName="rag-stak"),
    ),
    Mistake(
        "a priority class that nothing makes",
        "references",
        "priority-classes",
        "urgent",
        lambda draft: draft.pod("engine").update(priorityClassName="urgent"),
    ),
    Mistake(
        "a storage class that nothing makes",
        "references",
        "storage-classes",
        "gp4",
        lambda draft: draft.spec("PersistentVolumeClaim", "trial").update(storageClassName="gp4"),
    ),
    Mistake(
        "a binding of a role that nothing makes",
        "references",
        "role-bindings",
        "Role trail",
        lambda draft: draft.one("RoleBinding", "trial")["roleRef"].update(name="trail"),
    ),
    Mistake(
        "a binding to an account of another namespace",
        "references",
        "role-bindings",
        "default/trial",
        lambda draft: draft.one("RoleBinding", "trial")["subjects"][0].update(namespace="default"),
    ),
    Mistake(
        "a route to a Service that nobody makes",
        "references",
        "backends",
        "rag-stack-svc",
        lambda draft: draft.spec("HTTPRoute", "trial")["rules"][0]["backendRefs"][0].update(name="rag-stack-svc"),
    ),
    Mistake(
        "a Service whose selector matches no pod",
        "references",
        "services",
        "matches no pod",
        lambda draft: draft.spec("Service", "trial")["selector"].update(tier="front"),
    ),
    Mistake(
        "a Service to a port that its pods have not",
        "references",
        "services",
        "targetPort https",
        lambda draft: draft.spec("Service", "trial")["ports"][0].update(targetPort="https"),
    ),
    Mistake(
        "a network policy for a port that the pods have not",
        "references",
        "network-policies",
        "servee",
        lambda draft: next(
            each
            for policy in draft.documents
            if policy["kind"] == "NetworkPolicy"
            for rule in policy["spec"].get("ingress") or []
            for each in rule.get("ports") or []
            if isinstance(each["port"], str)
        ).update(port="servee"),
    ),
    Mistake(
        "a network policy for pods that nothing makes",
        "references",
        "network-policies",
        "matches no pod",
        lambda draft: draft.spec("NetworkPolicy", "inside-the-stack").update(
            podSelector={"matchLabels": {"app": "rag-stack"}}
        ),
    ),
    Mistake(
        "a disruption budget that protects nothing",
        "references",
        "disruption-budgets",
        "protects nothing",
        lambda draft: draft.spec("PodDisruptionBudget")["selector"].update(matchLabels={"ray.io/node-type": "hed"}),
    ),
    Mistake(
        "pods that are spread from others than their like",
        "references",
        "spread",
        "labelSelector",
        lambda draft: draft.pod("engine").update(
            topologySpreadConstraints=[
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"app": "engine"}},
                }
            ]
        ),
    ),
    Mistake(
        "a probe of a port that the container has not",
        "references",
        "probe-ports",
        "'web'",
        lambda draft: _trial_container(draft).update(readinessProbe={"httpGet": {"path": "/health", "port": "web"}}),
    ),
    Mistake(
        "two ports of one name",
        "references",
        "port-names",
        "'http'",
        lambda draft: _trial_container(draft).update(
            ports=[{"name": "http", "containerPort": 1}, {"name": "http", "containerPort": 2}]
        ),
    ),
    Mistake(
        "a PodMonitor that selects by a generated name",
        "references",
        "generated-labels",
        "ray.io/cluster",
        lambda draft: draft.spec("PodMonitor", "trial")["selector"]["matchLabels"].update(
            {"ray.io/cluster": "rag-stack"}
        ),
    ),
    Mistake(
        "a scaler of a Deployment that nothing makes",
        "references",
        "scalers",
        "trail",
        lambda draft: draft.spec("HorizontalPodAutoscaler", "trial")["scaleTargetRef"].update(name="trail"),
    ),
    Mistake(
        "a Service of the name that the operator gives to its own",
        "references",
        "service-names",
        "rename",
        lambda draft: draft.one("Service", "trial")["metadata"].update(name="rag-stack-serve-svc"),
    ),
    Mistake(
        "a snapshot class of another driver than the storage class",
        "references",
        "snapshot-drivers",
        "pd.csi.storage.gke.io",
        lambda draft: draft.one("VolumeSnapshotClass", "trial").update(driver="pd.csi.storage.gke.io"),
    ),
    Mistake(
        "a snapshot of a class that nothing makes",
        "references",
        "snapshot-classes",
        "class nightly",
        lambda draft: draft.spec("VolumeSnapshot", "trial").update(volumeSnapshotClassName="nightly"),
    ),
    Mistake(
        "a snapshot of a claim that nothing makes",
        "references",
        "snapshot-sources",
        "claim indexes",
        lambda draft: draft.spec("VolumeSnapshot", "trial")["source"].update(persistentVolumeClaimName="indexes"),
    ),
    Mistake(
        "a claim from a snapshot without its group",
        "references",
        "restore-sources",
        "apiGroup",
        lambda draft: draft.spec("PersistentVolumeClaim", "trial-restored")["dataSourceRef"].pop("apiGroup"),
    ),
    Mistake(
        "local volumes that are bound before the pod has a node",
        "references",
        "static-volumes",
        "WaitForFirstConsumer",
        lambda draft: draft.one("StorageClass", "trial-local").update(volumeBindingMode="Immediate"),
    ),
    Mistake(
        "a backup of a namespace where nothing runs",
        "references",
        "backup-schedules",
        "ragstack",
        lambda draft: draft.spec("Schedule", "trial")["template"].update(includedNamespaces=["ragstack"]),
    ),
    Mistake(
        "a backup's hook in a container that the pod has not",
        "references",
        "backup-schedules",
        "'ray'",
        lambda draft: draft.spec("Schedule", "trial")["template"]["hooks"]["resources"][0]["pre"][0]["exec"].update(
            container="ray"
        ),
    ),
)
