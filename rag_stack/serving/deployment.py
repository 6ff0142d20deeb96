"""How Serve runs the engine's deployment and the router in front of it. Each option comes from one place."""

from typing import Any, Final

from ray import serve
from ray.llm._internal.serve.core.ingress.router import LLMRouter
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.round_robin_router import RoundRobinRouter

from rag_stack.config import Release

# One that dies is found by the controller's next question: two seconds, and not the ten by default.
_HEALTH_PERIOD_S: Final = 2.0
_HEALTH_TIMEOUT_S: Final = 30.0
_ROUTER_PERIOD_S: Final = 1.0
# HAProxy asks a router of its own node, and the next one when the first does not answer the call.
_ROUTERS: Final = 2


def engine_options(release: Release) -> dict[str, Any]:
    """Serve's options of the engine's deployment."""
    return {
        **_scaling(release),
        "max_ongoing_requests": 1_000_000,  # the layer's own admission decides, and answers 429 in OpenAI's shape
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "graceful_shutdown_timeout_s": release.drain.limit_s,
        "request_router_config": router_config(release),
    }


def router_config(release: Release) -> RequestRouterConfig:  # noqa: ARG001
    """Which replica a request goes to."""
    return RequestRouterConfig(request_router_class=RoundRobinRouter)


def with_router(engine: serve.Application) -> serve.Application:
    """The engine's application with the routers that HAProxy asks before each POST.

    Also before those of the control applications, since the engine's prefix is `/` and HAProxy takes the longest prefix
    that has a router. Giving each of them a router of its own would keep them out of this one's way, and put one more
    process in their own: two routers and a short health check it is. While the engine sleeps, no router is asked.
    """
    router = serve.deployment(
        LLMRouter,
        num_replicas=_ROUTERS,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        # With no router left, HAProxy refuses every POST until the controller has noticed.
        health_check_period_s=_ROUTER_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
    )
    # The hook that Ray Serve LLM's own builder uses; it sets no number of replicas.
    return engine._with_ingress_request_router(router.bind(server=engine))


def _scaling(release: Release) -> dict[str, Any]:
    """Always by a policy: a rollout needs one replica more for a while, which a fixed number does not allow."""
    scaling = release.scaling
    return {
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.requests_per_replica,
            "metrics_interval_s": 0.5,
            "upscale_delay_s": 0.0,
            "downscale_delay_s": scaling.down_after_s,
            "downscale_to_zero_delay_s": scaling.idle_s,
        }
    }
