"""How weights and indexes come to a process, and what a start waits for."""

from typing import Final

from deploy.dashboards.grafana import Dashboard, Query, graph
from deploy.dashboards.promql import grown, highest, mean, recorded, total

DASHBOARD: Final = Dashboard(
    "rag-stack-data-path",
    "rag_stack: data path",
    (
        graph(
            "Newest starts by stage",
            "s",
            Query(highest("ray_rag_stack_cold_start_seconds", by="stage"), "{{stage}}"),
            description="What a replica's start, from its process to its first token, waited for.",
            stacked=True,
        ),
        graph(
            "Whole starts",
            "s",
            Query(recorded("rag_stack:cold_start_seconds:sum"), "{{WorkerId}}"),
            description="One for each replica that lives.",
        ),
        graph(
            "Seconds of a load",
            "s",
            Query(
                mean("ray_rag_stack_artifact_load_seconds", by="kind, stage, source"), "{{kind}} {{stage}} {{source}}"
            ),
            description="Mean over the lives of the processes that there are.",
        ),
        graph(
            "Speed of a load",
            "GBs",
            Query(
                mean("ray_rag_stack_artifact_load_gb_per_second", by="kind, stage, source"),
                "{{kind}} {{stage}} {{source}}",
            ),
        ),
        graph(
            "Bytes by source",
            "bytes",
            Query(total("ray_rag_stack_artifact_load_bytes_total", by="kind, source"), "{{kind}} {{source}}"),
            description="How much of the weights and indexes came from where: cache, mirror, peer, object_store, disk.",
            stacked=True,
        ),
        graph(
            "Node caches",
            "bytes",
            Query(highest("ray_rag_stack_cache_bytes", by="NodeAddress"), "{{NodeAddress}}"),
        ),
        graph(
            "Evictions in an hour",
            "short",
            Query(grown("ray_rag_stack_cache_evictions_total", by="NodeAddress", window="1h"), "{{NodeAddress}}"),
        ),
        graph(
            "Evicted bytes in an hour",
            "bytes",
            Query(
                grown("ray_rag_stack_cache_evicted_bytes_total", by="NodeAddress", window="1h"),
                "{{NodeAddress}}",
            ),
        ),
        graph(
            "Disk of a node",
            "bytes",
            Query(total("ray_node_disk_io_read_speed", by="NodeAddress"), "read a second {{NodeAddress}}"),
            Query(total("ray_node_disk_free", by="NodeAddress"), "free {{NodeAddress}}"),
        ),
    ),
)
