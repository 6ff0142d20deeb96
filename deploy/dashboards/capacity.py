"""What waits, what runs, and how full it is."""

from typing import Final

from deploy.dashboards.grafana import Dashboard, Query, graph
from deploy.dashboards.promql import highest, quantile, rate, recorded, total

DASHBOARD: Final = Dashboard(
    "rag-stack-capacity",
    "rag_stack: capacity",
    (
        graph(
            "Requests that wait",
            "short",
            Query(recorded("rag_stack:queue_length:sum"), "all"),
            Query(total("ray_rag_stack_admission_queue_length"), "for the engine"),
            Query(total("ray_rag_stack_held_requests"), "held while nothing serves"),
        ),
        graph(
            "Wait for the engine",
            "s",
            Query(quantile(0.5, "ray_rag_stack_admission_wait_seconds"), "p50"),
            Query(quantile(0.9, "ray_rag_stack_admission_wait_seconds"), "p90"),
        ),
        graph(
            "Refused",
            "reqps",
            Query(rate("ray_rag_stack_admission_refused_total", by="reason"), "{{reason}}"),
            Query(rate("ray_rag_stack_held_refused_total", by="reason"), "held: {{reason}}"),
        ),
        graph(
            "Replicas of the engine",
            "short",
            Query(
                highest("ray_serve_autoscaling_target_replicas", where='application="engine", deployment!="LLMRouter"'),
                "wanted",
            ),
            Query(
                total("ray_serve_deployment_replica_healthy", where='application="engine", deployment!="LLMRouter"'),
                "healthy",
            ),
        ),
        graph(
            "Requests in the engines",
            "short",
            Query(total("ray_vllm_num_requests_running"), "running"),
            Query(total("ray_vllm_num_requests_waiting"), "waiting"),
        ),
        graph(
            "Memory for keys and values",
            "percentunit",
            Query(recorded("rag_stack:kv_cache_usage:max"), "fullest engine"),
            Query(highest("ray_vllm_kv_cache_usage_perc"), "as vLLM says"),
        ),
        graph(
            "Tokens whose keys and values fit",
            "short",
            Query(total("ray_rag_stack_kv_cache_tokens"), "all engines"),
            Query(highest("ray_rag_stack_kv_cache_tokens"), "largest engine"),
            description="`rag-stack plan kv` holds what is asked for against it.",
        ),
        graph(
            "Prefix cache",
            "percentunit",
            Query(recorded("rag_stack:prefix_cache_hits:ratio5m"), "prompt tokens that were there"),
            description="Documents in a stable order let questions share them.",
        ),
        graph(
            "What waits, in tokens and bytes",
            "short",
            Query(total("ray_rag_stack_admission_queue_tokens"), "tokens for the engine"),
            Query(total("ray_rag_stack_held_bytes"), "bytes of held requests"),
        ),
        graph(
            "Memory and CPU of a node",
            "percentunit",
            Query(
                f"{highest('ray_node_mem_used', by='NodeAddress')} / {highest('ray_node_mem_total', by='NodeAddress')}",
                "memory {{NodeAddress}}",
            ),
            Query(f"{highest('ray_node_cpu_utilization', by='NodeAddress')} / 100", "CPU {{NodeAddress}}"),
        ),
    ),
)
