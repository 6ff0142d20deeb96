"""Mistakes that KubeRay's schema takes and the operator refuses, or does not get over."""

from typing import Final

from deploy.verify.mistakes.draft import Draft, Mistake

_INCREMENTAL: Final = {"stepSizePercent": 10, "intervalSeconds": 30, "maxSurgePercent": 50, "gatewayClassName": "istio"}


def _upgrade(draft: Draft, *, autoscales: bool = True, **changes: object) -> None:
    draft.cluster["enableInTreeAutoscaling"] = autoscales
    options = {key: each for key, each in {**_INCREMENTAL, **changes}.items() if each is not None}
    strategy = {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": options}
    draft.spec("RayService").update(upgradeStrategy=strategy)


def _claim(draft: Draft, *, mode: str, upgrade: str) -> None:
    draft.spec("PersistentVolumeClaim", "trial").update(accessModes=[mode])
    draft.spec("RayService").update(upgradeStrategy={"type": upgrade})
    draft.pod("engine")["volumes"].append({"name": "index", "persistentVolumeClaim": {"claimName": "trial"}})


def _two_groups_of_a_name(draft: Draft) -> None:
    draft.group("control")["groupName"] = "engine"


MISTAKES: Final = (
    Mistake(
        "a RayService's name of 48 characters",
        "operator",
        "name-length",
        "47",
        lambda draft: draft.one("RayService")["metadata"].update(name="r" * 48),
    ),
    Mistake(
        "a RayJob's generated name of 48 characters",
        "operator",
        "name-length",
        "shorten",
        lambda draft: draft.one("RayJob", "trial").update(metadata={"generateName": "r" * 43}),
    ),
    Mistake(
        "a name that begins with a number",
        "operator",
        "name-form",
        "DNS-1035",
        lambda draft: draft.one("RayService")["metadata"].update(name="2nd-stack"),
    ),
    Mistake(
        "a pod that is restarted under autoscaler v2",
        "operator",
        "restart-policy",
        "Never",
        lambda draft: draft.pod("engine").update(restartPolicy="Always"),
    ),
    Mistake(
        "an autoscaler of version 1",
        "operator",
        "autoscaler-version",
        "v2",
        lambda draft: draft.cluster["autoscalerOptions"].update(version="v1"),
    ),
    Mistake(
        "Ray's resources in two places",
        "operator",
        "resources-once",
        "num-cpus",
        lambda draft: draft.group("head").update(resources={"CPU": "0"}, rayStartParams={"num-cpus": "0"}),
    ),
    Mistake(
        "more replicas at least than at most",
        "operator",
        "replica-bounds",
        "maxReplicas",
        lambda draft: draft.group("control").update(minReplicas=9),
    ),
    Mistake("two groups of one name", "operator", "group-names", "engine", _two_groups_of_a_name),
    Mistake(
        "an incremental upgrade without an autoscaler",
        "operator",
        "incremental-upgrade",
        "enableInTreeAutoscaling",
        lambda draft: _upgrade(draft, autoscales=False),
    ),
    Mistake(
        "an upgrade's step over its surge",
        "operator",
        "incremental-upgrade",
        "stepSizePercent",
        lambda draft: _upgrade(draft, stepSizePercent=60),
    ),
    Mistake(
        "an upgrade's interval of zero",
        "operator",
        "incremental-upgrade",
        "intervalSeconds",
        lambda draft: _upgrade(draft, intervalSeconds=0),
    ),
    Mistake(
        "an upgrade without a gateway class",
        "operator",
        "incremental-upgrade",
        "gatewayClassName",
        lambda draft: _upgrade(draft, gatewayClassName=None),
    ),
    Mistake(
        "a head Service of a fixed name",
        "operator",
        "head-service",
        "headService",
        lambda draft: draft.group("head").update(headService={"metadata": {"name": "head"}}),
    ),
    Mistake(
        "a RayService that is scaled by Kubernetes",
        "operator",
        "scaler-target",
        "RayService",
        lambda draft: draft.spec("HorizontalPodAutoscaler", "trial").update(
            scaleTargetRef={"apiVersion": "ray.io/v1", "kind": "RayService", "name": "rag-stack"}
        ),
    ),
    Mistake(
        "a network policy of the operator's, whose gate is off",
        "operator",
        "gates",
        "RayClusterNetworkPolicy",
        lambda draft: draft.cluster.update(networkPolicy={"mode": "DenyAll"}),
    ),
    Mistake(
        "what the head knows in RocksDB, whose gate is off",
        "operator",
        "gates",
        "GCSFaultToleranceEmbeddedStorage",
        lambda draft: draft.cluster.update(gcsFaultToleranceOptions={"backend": "rocksdb"}),
    ),
    Mistake(
        "a time to live without a shutdown",
        "operator",
        "deletion",
        "shutdownAfterJobFinishes",
        lambda draft: draft.spec("RayJob", "trial").update(shutdownAfterJobFinishes=False),
    ),
    Mistake(
        "rules of deletion beside a shutdown",
        "operator",
        "deletion",
        "exclude",
        lambda draft: draft.spec("RayJob", "trial").update(
            deletionStrategy={"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}
        ),
    ),
    Mistake(
        "a retry of a job that people submit",
        "operator",
        "submission",
        "backoffLimit",
        lambda draft: draft.spec("RayJob", "trial").update(submissionMode="InteractiveMode", backoffLimit=2),
    ),
    Mistake(
        "Redis told to Ray past the operator",
        "operator",
        "fault-tolerance",
        "RAY_REDIS_ADDRESS",
        lambda draft: draft.container("head").update(env=[{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]),
    ),
    Mistake(
        "another version of Ray than the images'",
        "operator",
        "ray-version",
        "rayVersion",
        lambda draft: draft.cluster.update(rayVersion="2.59.0"),
    ),
    Mistake(
        "a dashboard that asks for no token",
        "operator",
        "token",
        "authOptions",
        lambda draft: draft.cluster.pop("authOptions"),
    ),
    Mistake(
        "a ReadWriteOnce claim in a service that is upgraded",
        "operator",
        "shared-claim",
        "ReadWriteMany",
        lambda draft: _claim(draft, mode="ReadWriteOnce", upgrade="NewCluster"),
    ),
    Mistake(
        "a ReadWriteOncePod claim in a group of several pods",
        "operator",
        "shared-claim",
        "share it",
        lambda draft: _claim(draft, mode="ReadWriteOncePod", upgrade="None"),
    ),
)
