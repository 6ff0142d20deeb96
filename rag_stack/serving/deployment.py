"""How Serve runs the engine's deployment and the router in front of it. Each option comes from one place."""

from dataclasses import asdict
from typing import Any, Final

from ray import serve
from ray.serve.config import AutoscalingPolicy, RequestRouterConfig

from rag_stack.artifacts.object_store import open_store
from rag_stack.config import Release
from rag_stack.errors import ArtifactError
from rag_stack.releases.start_history import label_of, read_history
from rag_stack.serving import bounds
from rag_stack.serving.rollout.router import ReleaseRouter
from rag_stack.serving.routing.ingress import RouteIngress
from rag_stack.serving.scaling.policy import Rules, ScalingPolicy

# A process that dies is found by the controller's next question; an engine that is lost by the third in a row, which
# Serve asks of every replica and has no setting for.
_HEALTH_PERIOD_S: Final = 1.0
_HEALTH_TIMEOUT_S: Final = 30.0
_ROUTER_PERIOD_S: Final = 1.0
# A share of a rollout, and a replica that is to go, are known to the routers so much later.
_STATS_PERIOD_S: Final = 1.0
# Replicas tell the controller how they fare; ten seconds by default, which is a part of a load time.
_REPORT_PERIOD_S: Final = 1.0
# What a start is taken to last where none is on record.
_LOAD_S: Final = 60.0


def engine_options(release: Release, *, load_s: float = _LOAD_S) -> dict[str, Any]:
    """Serve's options of the engine's deployment. `load_s` is what recorded starts of it took, their P90."""
    return {
        "autoscaling_config": _scaling(release, load_s=load_s),
        "max_ongoing_requests": bounds.ENGINE_ONGOING,
        **bounds.queued(release.wake.hold_requests),
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "graceful_shutdown_timeout_s": release.drain.limit_s,
        "request_router_config": router_config(release),
    }


def recorded_load_s(release: Release) -> float:
    """The P90 of the starts that are on record for this release, or a guess. Blocking: one look at the object store."""
    try:
        known = read_history(open_store(release.artifacts.root), release.name).load_time(label_of(release))
    except ArtifactError:
        known = None
    return known.p90_s if known else _LOAD_S


def router_config(release: Release) -> RequestRouterConfig:  # noqa: ARG001
    """Which replica a request goes to: a function of what the replicas report."""
    return RequestRouterConfig(
        request_router_class=f"{ReleaseRouter.__module__}.{ReleaseRouter.__name__}",
        request_routing_stats_period_s=_STATS_PERIOD_S,
    )


def with_router(engine: serve.Application) -> serve.Application:
    """The engine's application with the routers that HAProxy asks before each POST to it.

    Serve runs one on each node that has a proxy, whatever number is asked for. Where one is gone, HAProxy balances the
    requests over the replicas by itself as soon as the controller has noticed, and refuses them until then; the control
    applications need none (see haproxy.sh), and while the engine sleeps, none is asked.
    """
    router = serve.deployment(
        serve.ingress()(RouteIngress),
        name="LLMRouter",  # as Ray's own, which many look for by this name
        max_ongoing_requests=bounds.ROUTER_ONGOING,
        ray_actor_options={"num_cpus": 0},
        # With no router left, HAProxy refuses every POST until the controller has noticed.
        health_check_period_s=_ROUTER_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        **bounds.queued(),
    )
    # The hook that Ray Serve LLM's own builder uses.
    return engine._with_ingress_request_router(router.bind(server=engine))


def scaling_rules(release: Release, *, load_s: float) -> Rules:
    """What the policy goes by. Prompts that wait are a replica's work at half of what one admits."""
    scaling = release.scaling
    return Rules(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        requests_per_replica=scaling.requests_per_replica,
        waiting_tokens_per_replica=release.admission.waiting_tokens / 2,
        idle_s=scaling.idle_s,
        down_after_s=scaling.down_after_s,
        load_s=load_s,
        max_surge=release.rollout.surge,
    )


def _scaling(release: Release, *, load_s: float) -> dict[str, Any]:
    """Always by a policy: a rollout needs one replica more for a while, which a fixed number does not allow.

    Serve's own delays are none: they come after the policy, which does not see what they hold back.
    """
    rules = scaling_rules(release, load_s=load_s)
    return {
        "min_replicas": rules.min_replicas,
        "max_replicas": rules.max_replicas + rules.max_surge,
        "target_ongoing_requests": rules.requests_per_replica,  # for Serve's metric of the same name
        "metrics_interval_s": _REPORT_PERIOD_S,
        "look_back_period_s": 3 * _REPORT_PERIOD_S,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "downscale_to_zero_delay_s": 0.0,
        "policy": AutoscalingPolicy(policy_function=ScalingPolicy, policy_kwargs=asdict(rules)),
    }
