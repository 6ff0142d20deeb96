"""Ray's own reading of a cluster: its node types, and that everything that is to run fits one of them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deploy.verify.ray_cluster import Cluster, clusters
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, name_of, namespace_of
from deploy.verify.serve_config import ServeConfig, serve_configs
from deploy.verify.size import ENGINE_GROUP, size_of

NodeTypes = dict[str, dict[str, Any]]
_HEAD: Final = "headgroup"


def node_types(overlay: Rendered) -> Iterator[Flaw]:
    """Ray's autoscaler understands the cluster."""
    for cluster in clusters(overlay):
        wrong = _derived(cluster)[1]
        if wrong:
            yield Flaw(cluster.thing, f"Ray's autoscaler does not understand it: {wrong}")


def idle_head(overlay: Rendered) -> Iterator[Flaw]:
    """No work lands on the head of a service: with it, all would be lost."""
    for cluster, types in _read(overlay):
        if cluster.owner["kind"] == "RayService" and types[_HEAD]["resources"].get("CPU") != 0:
            yield Flaw(cluster.head.thing, 'takes work: rayStartParams: {num-cpus: "0"}')


def engine_placement(overlay: Rendered) -> Iterator[Flaw]:
    """A replica's placement group, which lies on one node, fits a worker of the engine's group."""
    for cluster, types, total in _replicas(overlay):
        group = types.get(ENGINE_GROUP)
        if group is None or not group["max_workers"] or not _fits(total, group["resources"]):
            yield Flaw(cluster.thing, f"a replica of the engine needs {total} on one node: {_sizes(types)}")


def engine_apart(overlay: Rendered) -> Iterator[Flaw]:
    """And no other group, whose pods have not the memory for it."""
    for cluster, types, total in _replicas(overlay):
        for name, each in types.items():
            if name != ENGINE_GROUP and each["max_workers"] and _fits(total, each["resources"]):
                yield Flaw(
                    cluster.thing,
                    f"a replica of the engine ({total}) may land on group {name}, too, which has "
                    f"{_sizes({name: each})}: give that fewer CPUs for Ray (`resources: {{CPU: ...}}`)",
                )


def actor_resources(overlay: Rendered) -> Iterator[Flaw]:
    """What a deployment asks for is there, on some group that may have a node."""
    for cluster, types, config in _served(overlay):
        for application in config.applications:
            for deployment in application.get("deployments") or []:
                wanted = _actor(deployment.get("ray_actor_options") or {})
                if not any(each["max_workers"] and _fits(wanted, each["resources"]) for each in types.values()):
                    name = f"{application.get('name')} {deployment.get('name')}"
                    yield Flaw(cluster.thing, f"{name} asks for {wanted}; no group has it: {_sizes(types)}")


def control_stays(overlay: Rendered) -> Iterator[Flaw]:
    """The control applications always run, and so a group that never goes to zero has them."""
    for cluster, types, config in _served(overlay):
        for application in config.applications:
            for deployment in application.get("deployments") or []:
                wanted = _actor(deployment.get("ray_actor_options") or {})
                kept = [each for each in types.values() if each["min_workers"] and _fits(wanted, each["resources"])]
                if application.get("name") != "engine" and not kept:
                    yield Flaw(
                        cluster.thing, f"{application.get('name')} has no group with minReplicas over 0: give it one"
                    )


def pinned_control(overlay: Rendered) -> Iterator[Flaw]:
    """Control applications name the control group's resource, or they land on an engine's worker and keep it."""
    for cluster, types, config in _served(overlay):
        if not any("control" in each["resources"] for each in types.values()):
            yield Flaw(cluster.thing, "no group has the resource control: rayStartParams resources, or `resources`")
        for application in config.applications:
            if application.get("name") in ("engine", None):
                continue
            options = [
                dig(each, "ray_actor_options", "resources") or {} for each in application.get("deployments") or []
            ]
            if not options or any("control" not in each for each in options):
                yield Flaw(cluster.thing, f"{application['name']}: ray_actor_options.resources needs control: 0.01")


def driver_placement(overlay: Rendered) -> Iterator[Flaw]:
    """A job's driver fits a node of its cluster."""
    for cluster, types in _read(overlay):
        spec = cluster.owner.get("spec") or {}
        if cluster.owner["kind"] != "RayJob":
            continue
        wanted = {"CPU": spec.get("entrypointNumCpus", 0), "GPU": spec.get("entrypointNumGpus", 0)}
        wanted |= json.loads(spec.get("entrypointResources") or "{}")
        if not any(_fits(wanted, each["resources"]) for each in types.values()):
            yield Flaw(cluster.thing, f"its driver asks for {wanted}; no group has it: {_sizes(types)}")


RULES: Final[tuple[Rule, ...]] = (
    node_types,
    idle_head,
    engine_placement,
    engine_apart,
    actor_resources,
    control_stays,
    pinned_control,
    driver_placement,
)


def _derived(cluster: Cluster) -> tuple[NodeTypes, str]:
    """The node types by Ray's own parser, or what it says."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    metadata = {"name": name_of(cluster.owner), "namespace": namespace_of(cluster.owner)}
    try:
        config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": _with_params(cluster.spec)})
    except Exception as exc:
        return {}, f"{type(exc).__name__}: {exc}"
    return dict(config["available_node_types"]), ""


def _with_params(spec: Document) -> Document:
    """The operator fills in what Ray's parser asks for and manifests need not have."""
    workers = [{"rayStartParams": {}, **each} for each in spec.get("workerGroupSpecs") or []]
    return {**spec, "headGroupSpec": {"rayStartParams": {}, **spec["headGroupSpec"]}, "workerGroupSpecs": workers}


def _read(overlay: Rendered) -> Iterator[tuple[Cluster, NodeTypes]]:
    for cluster in clusters(overlay):
        types = _derived(cluster)[0]
        if types:
            yield cluster, types


def _served(overlay: Rendered) -> Iterator[tuple[Cluster, NodeTypes, ServeConfig]]:
    for cluster, types in _read(overlay):
        for config in serve_configs(overlay):
            if config.owner is cluster.owner:
                yield cluster, types, config


def _replicas(overlay: Rendered) -> Iterator[tuple[Cluster, NodeTypes, dict[str, float]]]:
    """What a replica of the engine takes of one node, as the builder asks for it."""
    from rag_stack.errors import ConfigError
    from rag_stack.serving.size import placed, sized, worker_size

    for cluster, types, config in _served(overlay):
        try:
            size = worker_size(size_of(overlay))
            placement = placed(sized(config.release, size), size) if config.release else None
        except ConfigError:  # a finding of `serve`
            continue
        if placement is not None:
            bundles = [dict(each) for each in placement["bundles"]]
            # The replica's actor takes a CPU of its own, in the first.
            bundles[0]["CPU"] = bundles[0].get("CPU", 0) + 1
            yield cluster, types, _sum(bundles)


def _actor(options: Mapping[str, Any]) -> dict[str, float]:
    """A Serve replica takes one CPU unless its options say otherwise."""
    return {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0), **(options.get("resources") or {})}


def _fits(wanted: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return all(amount <= there.get(resource, 0) for resource, amount in wanted.items() if amount)


def _sum(bundles: list[dict[str, float]]) -> dict[str, float]:
    together: dict[str, float] = {}
    for bundle in bundles:
        for resource, amount in bundle.items():
            together[resource] = together.get(resource, 0) + amount
    return together


def _sizes(types: NodeTypes) -> str:
    shown = {name: {k: v for k, v in each["resources"].items() if k != "memory"} for name, each in types.items()}
    return json.dumps(shown)
