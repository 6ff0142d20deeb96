"""How old what is searched is, and what is on its way."""

from typing import Final

from deploy.dashboards.grafana import Dashboard, Query, graph
from deploy.dashboards.promql import highest, mean, quantile, recorded, total

DASHBOARD: Final = Dashboard(
    "rag-stack-index",
    "rag_stack: indexes",
    (
        graph(
            "Age of what is served",
            "s",
            Query(recorded("rag_stack:index_age_seconds:max"), "{{store}}"),
            description="Since its publication. A build of documents that have not changed is the same version.",
        ),
        graph(
            "Newest version not promoted",
            "short",
            Query(highest("ray_rag_stack_index_unpromoted", by="store"), "{{store}}"),
            description="1 while the newest version has never been promoted: a gate refused it, or it was built so.",
        ),
        graph(
            "Failed gates of the newest version",
            "short",
            Query(highest("ray_rag_stack_index_failed_gates", by="store"), "{{store}}"),
            description="Those that judge its own content; what it shrank by is in the build's report.",
        ),
        graph(
            "Processes that lag",
            "short",
            Query(total("ray_rag_stack_index_lagging", by="store"), "{{store}}"),
        ),
        graph(
            "Swaps by outcome",
            "short",
            Query(total("ray_rag_stack_index_swaps_total", by="outcome"), "{{outcome}}"),
            description="Over the lives of the processes that there are.",
        ),
        graph(
            "Seconds of a swap by stage",
            "s",
            Query(mean("ray_rag_stack_index_swap_seconds", by="stage"), "{{stage}}"),
        ),
        graph(
            "Indexes on GPUs",
            "bytes",
            Query(total("ray_rag_stack_gpu_index_bytes"), "all replicas"),
            description="As planned, scratch memory in it; 0 unless a release enables `gpu_index`.",
        ),
        graph(
            "Searches of indexes on GPUs, by who answered",
            "short",
            Query(total("ray_rag_stack_gpu_index_searches_total", by="place"), "{{place}}"),
            description="Over the lives of the processes that there are. With a filter it is the host.",
        ),
        graph(
            "Searches that wait or run",
            "short",
            Query(total("ray_rag_stack_retrieval_queue_length"), "searches"),
        ),
        graph(
            "Retrieval by stage, P50",
            "ms",
            Query(quantile(0.5, "ray_rag_stack_retrieval_milliseconds", by="stage"), "{{stage}}"),
        ),
    ),
)
