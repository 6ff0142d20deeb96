"""Is it well: answers, first tokens, errors, the engine, the rollout."""

from typing import Final

from deploy.dashboards.grafana import Dashboard, Query, graph
from deploy.dashboards.promql import highest, quantile, rate, recorded

DASHBOARD: Final = Dashboard(
    "rag-stack-overview",
    "rag_stack: overview",
    (
        graph(
            "Answers by outcome",
            "reqps",
            Query(recorded("rag_stack:answers:rate5m"), "{{outcome}}"),
            description="Requests that generate. Good: the first token, or the whole answer, came within the target.",
            stacked=True,
        ),
        graph(
            "Time to first token",
            "s",
            *(Query(recorded(f"rag_stack:ttft_seconds:{q}"), q) for q in ("p50", "p90", "p99")),
            description="From a request's arrival at the replica. What was held for a start is not in it.",
        ),
        graph(
            "Goodput and failures",
            "percentunit",
            Query(recorded("rag_stack:goodput:ratio5m"), "good"),
            Query(recorded("rag_stack:failures:ratio5m"), "failed"),
        ),
        graph(
            "Requests by route and status",
            "reqps",
            Query(rate("ray_rag_stack_requests_total", by="route, status"), "{{route}} {{status}}"),
            stacked=True,
        ),
        graph(
            "Engine's state",
            "short",
            Query(highest("ray_rag_stack_engine_state", by="state"), "{{state}}"),
            description="1 for the state that it is in.",
        ),
        graph(
            "HAProxy's answers by class",
            "reqps",
            Query(rate("haproxy_backend_http_responses_total", by="proxy, code"), "{{proxy}} {{code}}"),
            description="As clients saw them, with what no replica answered.",
        ),
        graph(
            "Tokens",
            "cps",
            Query(rate("ray_vllm_generation_tokens_total"), "generated"),
            Query(rate("ray_vllm_prompt_tokens_total"), "prompt"),
        ),
        graph(
            "Prompt tokens found in the prefix cache",
            "cps",
            Query(rate("ray_rag_stack_prompt_tokens_total", by="part"), "{{part}}"),
            description="all: of prompts with documents. cached: what the engine had. predicted: what the order of the "
            "documents was chosen for; far above cached, the engine evicts more than the replica believes.",
        ),
        graph(
            "Retrieval by stage, P90",
            "ms",
            Query(quantile(0.9, "ray_rag_stack_retrieval_milliseconds", by="stage"), "{{stage}}"),
        ),
        graph(
            "Citations by method",
            "cps",
            Query(rate("ray_rag_stack_citations_total", by="method"), "{{method}}"),
        ),
        graph(
            "Prompts read ahead during a rerank",
            "cps",
            Query(rate("ray_rag_stack_prefills_total", by="outcome"), "{{outcome}}"),
            description="Started, and what became of each: used, cancelled, failed. All 0 without a reranker.",
        ),
        graph(
            "Why a request went to its replica",
            "reqps",
            Query(rate("ray_rag_stack_routed_total", by="reason"), "{{reason}}"),
        ),
        graph(
            "Rollout",
            "percentunit",
            Query(highest("ray_rag_stack_release_rollout_state", by="state"), "{{state}}"),
            Query(highest("ray_rag_stack_release_rollout_share_ratio"), "share of the new version"),
        ),
        graph(
            "Spans for the trace collector",
            "cps",
            Query(rate("ray_rag_stack_trace_spans_total", by="outcome"), "{{outcome}}"),
            description="All 0 where tracing is off.",
        ),
    ),
)
