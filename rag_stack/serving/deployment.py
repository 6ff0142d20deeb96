"""How Serve runs the engine's deployment and the router in front of it. Each option comes from one place."""

from dataclasses import asdict
from typing import Any, Final

from ray import serve
from ray.llm._internal.serve.core.ingress.router import LLMRouter
from ray.serve.config import AutoscalingPolicy, RequestRouterConfig

from rag_stack.config import Release
from rag_stack.serving import bounds
from rag_stack.serving.release_router import ReleaseRouter
from rag_stack.serving.scaling import Rules, ScalingPolicy

# A process that dies is found by the controller's next question; an engine that is lost by the third in a row, which
# Serve asks of every replica and has no setting for.
_HEALTH_PERIOD_S: Final = 1.0
_HEALTH_TIMEOUT_S: Final = 30.0
_ROUTER_PERIOD_S: Final = 1.0
# A share of a rollout, and a replica that is to go, are known to the routers so much later.
_STATS_PERIOD_S: Final = 1.0
# HAProxy asks a router of its own node, and the next one when the first does not answer the call.
_ROUTERS: Final = 2
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


def router_config(release: Release) -> RequestRouterConfig:  # noqa: ARG001
    """Which replica a request goes to: a function of what the replicas report."""
    return RequestRouterConfig(
        request_router_class=f"{ReleaseRouter.__module__}.{ReleaseRouter.__name__}",
        request_routing_stats_period_s=_STATS_PERIOD_S,
    )


def with_router(engine: serve.Application) -> serve.Application:
    """The engine's application with the routers that HAProxy asks before each POST.

    Also before those of the control applications, since the engine's prefix is `/` and HAProxy takes the longest prefix
    that has a router. Giving each of them a router of its own would keep them out of this one's way, and put one more
    process in their own: two routers and a short health check it is. While the engine sleeps, no router is asked.
    """
    router = serve.deployment(
        LLMRouter,
        num_replicas=_ROUTERS,
        max_ongoing_requests=bounds.ROUTER_ONGOING,
        ray_actor_options={"num_cpus": 0},
        # With no router left, HAProxy refuses every POST until the controller has noticed.
        health_check_period_s=_ROUTER_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        **bounds.queued(),
    )
    # The hook that Ray Serve LLM's own builder uses; it sets no number of replicas.
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
