"""Mistakes in fields: misspelt, of the wrong type, or against a definition's rule."""

from typing import Final

from deploy.verify.mistakes.draft import Mistake

MISTAKES: Final = (
    Mistake(
        "a misspelt field of a Deployment",
        "core",
        "core-fields",
        "selectr",
        lambda draft: draft.spec("Deployment", "trial").update(selectr={}),
    ),
    Mistake(
        "a number where a Service wants a text",
        "core",
        "core-fields",
        "selector",
        lambda draft: draft.spec("Service", "trial")["selector"].update({"app.kubernetes.io/name": 1}),
    ),
    Mistake(
        "an apiVersion that Kubernetes has no more",
        "core",
        "core-fields",
        "policy/v1beta1",
        lambda draft: draft.one("PodDisruptionBudget").update(apiVersion="policy/v1beta1"),
    ),
    Mistake(
        "a misspelt field of a container of Ray",
        "core",
        "pods-of-ray",
        "volumeMount'",
        lambda draft: draft.container("engine").update(volumeMount=[]),
    ),
    Mistake(
        "a misspelt field of the RayService",
        "crd",
        "custom-fields",
        "rayClusterSpec",
        lambda draft: draft.spec("RayService").update(rayClusterSpec={}),
    ),
    Mistake(
        "a misspelt field of the autoscaler",
        "crd",
        "custom-fields",
        "idleTimeoutSecond'",
        lambda draft: draft.cluster["autoscalerOptions"].update(idleTimeoutSecond=1),
    ),
    Mistake(
        "an upscaling mode that does not exist",
        "crd",
        "custom-fields",
        "upscalingMode",
        lambda draft: draft.cluster["autoscalerOptions"].update(upscalingMode="Fast"),
    ),
    Mistake(
        "a snapshot class without a deletion policy",
        "crd",
        "custom-fields",
        "deletionPolicy",
        lambda draft: draft.one("VolumeSnapshotClass", "trial").pop("deletionPolicy"),
    ),
    Mistake(
        "a misspelt field of a backup schedule",
        "crd",
        "custom-fields",
        "includeNamespaces",
        lambda draft: draft.spec("Schedule", "trial")["template"].update(includeNamespaces=["rag-stack"]),
    ),
    Mistake(
        "a kind that a custom group has not",
        "crd",
        "custom-fields",
        "no such kind",
        lambda draft: draft.one("PodMonitor", "trial").update(kind="PodsMonitor"),
    ),
    Mistake(
        "a snapshot of two sources",
        "cel",
        "definition-rules",
        "source",
        lambda draft: draft.spec("VolumeSnapshot", "trial")["source"].update(volumeSnapshotContentName="other"),
    ),
    Mistake(
        "a RayJob that says in two ways when its cluster goes",
        "cel",
        "definition-rules",
        "cannot be used together",
        lambda draft: draft.spec("RayJob", "trial").update(
            deletionStrategy={
                "onSuccess": {"policy": "DeleteSelf"},
                "onFailure": {"policy": "DeleteNone"},
                "deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}],
            }
        ),
    ),
    Mistake(
        "a manager that is not the operator",
        "cel",
        "definition-rules",
        "managedBy",
        lambda draft: draft.cluster.update(managedBy="somebody"),
    ),
)
