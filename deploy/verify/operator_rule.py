"""What KubeRay 1.7 refuses, or does wrong silently, although its schema takes it."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from deploy.verify.ray_cluster import clusters
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, name_of, title

_RAY_KINDS: Final = ("RayService", "RayJob", "RayCluster", "RayCronJob")
# The operator appends to a RayService's and a RayJob's name.
_LONGEST: Final = {"RayService": 47, "RayJob": 47, "RayCluster": 63}
# What the API server appends to `generateName`.
_GENERATED: Final = 5
_DNS_1035: Final = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_START_RESOURCES: Final = ("num-cpus", "num-gpus", "memory", "resources")
_REDIS_ENV: Final = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")


def name_length(overlay: Rendered) -> Iterator[Flaw]:
    """The operator makes longer names out of these."""
    for document in overlay.of(*_LONGEST):
        name, most = name_of(document), _LONGEST[str(document["kind"])]
        length = len(name) + (0 if dig(document, "metadata", "name") else _GENERATED)
        if length > most:
            yield Flaw(title(document), f"the name has {length} characters: the operator takes {most}, shorten it")


def name_form(overlay: Rendered) -> Iterator[Flaw]:
    """Names become DNS labels; a generated one goes on after its hyphen."""
    for document in overlay.of(*_RAY_KINDS):
        name = name_of(document)
        if not _DNS_1035.match(name if dig(document, "metadata", "name") else f"{name}0"):
            yield Flaw(title(document), "the name must begin with a letter and have a-z, 0-9 and - alone (DNS-1035)")


def restart_policy(overlay: Rendered) -> Iterator[Flaw]:
    """Autoscaler v2 replaces pods and wants none restarted."""
    for cluster in clusters(overlay):
        if cluster.autoscales and dig(cluster.spec, "autoscalerOptions", "version") == "v2":
            for group in cluster.groups:
                policy = group.pod.get("restartPolicy")
                if policy not in (None, "Never"):
                    yield Flaw(group.thing, f"restartPolicy is {policy}: autoscaler v2 wants Never, or none said")


def autoscaler_version(overlay: Rendered) -> Iterator[Flaw]:
    """A group's own idle time is a thing of autoscaler v2."""
    for cluster in clusters(overlay):
        if cluster.autoscales and dig(cluster.spec, "autoscalerOptions", "version") != "v2":
            yield Flaw(cluster.thing, "enableInTreeAutoscaling without `autoscalerOptions.version: v2`: say v2")
        for group in cluster.workers if not cluster.autoscales else ():
            if group.spec.get("idleTimeoutSeconds") is not None:
                yield Flaw(group.thing, "idleTimeoutSeconds without autoscaler v2: set enableInTreeAutoscaling")


def resources_once(overlay: Rendered) -> Iterator[Flaw]:
    """Ray's resources are said in one of two places."""
    for cluster in clusters(overlay):
        for group in cluster.groups:
            both = [key for key in _START_RESOURCES if key in group.start_params]
            if both and group.spec.get("resources"):
                yield Flaw(group.thing, f"rayStartParams says {both} and `resources` is there, too: keep one of them")
            if "labels" in group.start_params:
                yield Flaw(group.thing, "rayStartParams has `labels`: use the group's own `labels`")


def replica_bounds(overlay: Rendered) -> Iterator[Flaw]:
    """MinReplicas <= replicas <= maxReplicas, all said where nobody scales."""
    for cluster in clusters(overlay):
        for group in cluster.workers:
            least, most = group.spec.get("minReplicas"), group.spec.get("maxReplicas")
            if least is None or most is None:
                yield Flaw(group.thing, "minReplicas and maxReplicas must both be there: the autoscaler reads both")
                continue
            replicas = group.spec.get("replicas", least)
            if not 0 <= least <= replicas <= most:
                yield Flaw(
                    group.thing,
                    f"minReplicas {least} <= replicas {replicas} <= maxReplicas {most} does not hold: correct one",
                )


def group_names(overlay: Rendered) -> Iterator[Flaw]:
    """Groups are told apart by their names."""
    for cluster in clusters(overlay):
        names = [group.name for group in cluster.workers]
        for name in sorted({each for each in names if names.count(each) > 1}):
            yield Flaw(cluster.thing, f"two worker groups are called {name!r}: rename one")


def incremental_upgrade(overlay: Rendered) -> Iterator[Flaw]:
    """An upgrade in steps needs the autoscaler, a Gateway, and steps that fit its surge."""
    for cluster in clusters(overlay):
        if cluster.upgrade != "NewClusterWithIncrementalUpgrade":
            continue
        options = dig(cluster.owner, "spec", "upgradeStrategy", "clusterUpgradeOptions") or {}
        step, surge = options.get("stepSizePercent"), options.get("maxSurgePercent", 100)
        if not cluster.autoscales:
            yield Flaw(cluster.thing, "an incremental upgrade needs enableInTreeAutoscaling: true")
        if step is None or not 0 < step <= surge <= 100:
            yield Flaw(cluster.thing, f"stepSizePercent {step} must be in 1..maxSurgePercent ({surge}), that in 1..100")
        if not (options.get("intervalSeconds") or 0) > 0:
            yield Flaw(cluster.thing, "clusterUpgradeOptions.intervalSeconds must be over 0")
        if not options.get("gatewayClassName"):
            yield Flaw(cluster.thing, "an incremental upgrade needs clusterUpgradeOptions.gatewayClassName")


def head_service(overlay: Rendered) -> Iterator[Flaw]:
    """Two clusters of one RayService would share a head Service of a fixed name."""
    for cluster in clusters(overlay):
        if cluster.owner["kind"] == "RayService" and dig(cluster.head.spec, "headService", "metadata", "name"):
            yield Flaw(cluster.thing, "headService.metadata.name is set: leave it out, the operator names it")


def scaler_target(overlay: Rendered) -> Iterator[Flaw]:
    """No Ray kind has a scale subresource."""
    for document in overlay.of("HorizontalPodAutoscaler", "ScaledObject"):
        kind = dig(document, "spec", "scaleTargetRef", "kind")
        if kind in _RAY_KINDS:
            yield Flaw(title(document), f"scales a {kind}, which cannot be scaled so: use Ray's autoscaler")


def gates(overlay: Rendered) -> Iterator[Flaw]:
    """Features that are off unless the operator's Helm values turn them on."""
    for document in overlay.of("RayCronJob"):
        yield _gated(title(document), "RayCronJob", "a batch/v1 CronJob that creates a RayJob needs none")
    for cluster in clusters(overlay):
        if cluster.spec.get("networkPolicy") is not None:
            yield _gated(cluster.thing, "RayClusterNetworkPolicy", "a NetworkPolicy of your own needs none")
        if cluster.spec.get("tlsOptions") is not None:
            yield _gated(cluster.thing, "RayClusterMTLS", "leave tlsOptions out")
        if cluster.spec.get("historyServerOptions") is not None:
            yield _gated(cluster.thing, "RayClusterHistoryServer", "leave historyServerOptions out")
        if dig(cluster.spec, "gcsFaultToleranceOptions", "backend") == "rocksdb":
            yield _gated(cluster.thing, "GCSFaultToleranceEmbeddedStorage", "the backend `redis` needs none")


def deletion(overlay: Rendered) -> Iterator[Flaw]:
    """How a RayJob's cluster goes is said in one way."""
    for document in overlay.of("RayJob"):
        spec = document.get("spec") or {}
        strategy = spec.get("deletionStrategy") or {}
        shuts_down = bool(spec.get("shutdownAfterJobFinishes"))
        if strategy.get("deletionRules") and shuts_down:
            yield Flaw(title(document), "deletionRules and shutdownAfterJobFinishes exclude each other: keep one")
        if spec.get("ttlSecondsAfterFinished") and not shuts_down:
            yield Flaw(title(document), "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true")
        if not strategy and not shuts_down and not spec.get("clusterSelector"):
            yield Flaw(title(document), "its cluster stays when it is done: shutdownAfterJobFinishes: true")


def submission(overlay: Rendered) -> Iterator[Flaw]:
    """What a mode of submission does not go with."""
    for document in overlay.of("RayJob"):
        spec = document.get("spec") or {}
        mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector")
        if not selector and not spec.get("rayClusterSpec"):
            yield Flaw(title(document), "has no cluster: rayClusterSpec or clusterSelector")
        if spec.get("backoffLimit") and (selector or mode == "InteractiveMode"):
            yield Flaw(title(document), "backoffLimit must be 0 with a clusterSelector or in InteractiveMode")
        if mode == "SidecarMode" and (selector or spec.get("submitterPodTemplate") or spec.get("submitterConfig")):
            yield Flaw(title(document), "SidecarMode takes no clusterSelector, submitterPodTemplate, submitterConfig")


def fault_tolerance(overlay: Rendered) -> Iterator[Flaw]:
    """Redis is told to the operator, and not to Ray past it."""
    for cluster in clusters(overlay):
        names = {each.get("name") for each in cluster.head.container.get("env") or []}
        past = sorted(names & set(_REDIS_ENV))
        past += [key for key in ("redis-password", "redis-username") if key in cluster.head.start_params]
        options = cluster.spec.get("gcsFaultToleranceOptions") or {}
        if past:
            yield Flaw(cluster.head.thing, f"sets {past}: say it in gcsFaultToleranceOptions")
        if options.get("storage") and options.get("backend", "redis") == "redis":
            yield Flaw(cluster.thing, "gcsFaultToleranceOptions.storage is for rocksdb alone: leave it out")


def ray_version(overlay: Rendered) -> Iterator[Flaw]:
    """The operator and its autoscaler go by `rayVersion`; the image has what the lock says."""
    ours = version("ray")
    for cluster in clusters(overlay):
        said = cluster.spec.get("rayVersion")
        if said != ours:
            yield Flaw(cluster.thing, f"rayVersion is {said}, the images have Ray {ours}: say the same")


def token(overlay: Rendered) -> Iterator[Flaw]:
    """Whoever reaches a head's ports runs code there, unless a token is asked for."""
    for cluster in clusters(overlay):
        options = cluster.spec.get("authOptions") or {}
        if options.get("mode") != "token":
            yield Flaw(cluster.thing, "anyone who reaches the head may run code: authOptions: {mode: token}")
        if options.get("enableK8sTokenAuth") and cluster.owner["kind"] != "RayCluster":
            yield Flaw(cluster.thing, "enableK8sTokenAuth is for a RayCluster alone: leave it out")


def shared_claim(overlay: Rendered) -> Iterator[Flaw]:
    """One node has a ReadWriteOnce claim; the next cluster's pods wait for the last one's, which wait for them."""
    for cluster in clusters(overlay):
        for group in cluster.groups:
            most = 1 if group.head else group.spec.get("maxReplicas", 1)
            for claim, mode in _single_writer_claims(overlay, group.pod):
                if cluster.upgrade != "None":
                    why = f"an upgrade ({cluster.upgrade}) starts a second cluster, which waits for it for ever"
                elif most > 1 and mode == "ReadWriteOncePod":
                    why = f"{most} pods of the group would share it"
                else:
                    continue
                yield Flaw(group.thing, f"claim {claim} is {mode}, and {why}: ReadWriteMany, or ephemeral volumes")


RULES: Final[tuple[Rule, ...]] = (
    name_length,
    name_form,
    restart_policy,
    autoscaler_version,
    resources_once,
    replica_bounds,
    group_names,
    incremental_upgrade,
    head_service,
    scaler_target,
    gates,
    deletion,
    submission,
    fault_tolerance,
    ray_version,
    token,
    shared_claim,
)


def _gated(thing: str, gate: str, instead: str) -> Flaw:
    return Flaw(thing, f"needs the operator's feature gate {gate}, which is off by default; {instead}")


def _single_writer_claims(overlay: Rendered, pod: Document) -> Iterator[tuple[str, str]]:
    for volume in pod.get("volumes") or []:
        name = dig(volume, "persistentVolumeClaim", "claimName")
        claim = overlay.find("PersistentVolumeClaim", name) if name else None
        modes = dig(claim, "spec", "accessModes") or []
        if claim is not None and not {"ReadWriteMany", "ReadOnlyMany"} & set(modes):
            yield str(name), str(modes[0] if modes else "without access modes")
