"""Every queue, pool and cache on the way of a request, its bound, and what happens beyond it.

| where | bound | beyond it |
| --- | --- | --- |
| HAProxy, connections | `RAY_SERVE_HAPROXY_MAXCONN`, 4096 a process | the kernel's listen backlog, then refused |
| HAProxy, a body before the router is asked | its buffer, 64 KiB | the rest stays in the socket, unseen by the router |
| router, words that it remembers | 50,000 (routing/memory.py) | those not asked about for longest go |
| LLMRouter, calls | `ROUTER_ONGOING` + `QUEUED`, and HAProxy's 5 s | 503 |
| head's Serve proxy at zero replicas | `wake.hold_requests`, `hold_bytes`, `hold_s` | 429 or 503 with `Retry-After` |
| handle to the engine (Serve's router queue) | `max_queued_requests` = `wake.hold_requests` | 429 |
| replica, requests in Serve | `ENGINE_ONGOING`, above HAProxy's 4096 | 429 after `QUEUED` more |
| request bodies | `server.max_body_bytes` each, `server.max_file_bytes` an upload | 413 |
| admission, running | `engine.max_num_seqs` sequences | wait |
| admission, waiting | `admission.queue`, `admission.waiting_tokens`, the TTFT target | 429 with `Retry-After` |
| admission, what was held for the start | `wake.hold_requests`, for `wake.hold_s` | 429 with `Retry-After` |
| retrieval | `retrieval.threads` run, `retrieval.queue` wait | 429 with `Retry-After` |
| prompt and citations | asyncio's thread pool (CPUs + 4), fed by admitted requests alone | wait |
| `/v1/rerank` | 16 requests, of which one is computed; 1000 documents each | 429 with `Retry-After`, 400 |
| prompts read ahead of a rerank | `prefill.at_once`, and none while a request waits for its turn | not read ahead |
| filter masks | an LRU for each index version (retrieval/filters.py) | recomputed |
| stores | `swap.max_stores` | 400 |
| vLLM, waiting | none of its own; never more than admitted and one canary question, so empty but for hand-over | - |
| canary questions beside requests | of one replica, one at a time, as a rollout to its version begins | asked again |
| vLLM, KV blocks | what the replica's memory budget leaves / `gpu_memory_utilization` | preempted, recomputed |
| requests that are recorded | `RAG_STACK_KV_TRACE`: 1024 wait, 256 MiB a file | not in the trace |
| an answer on its way out | uvicorn's high-water mark (64 KiB) a connection | vLLM's output waits, one answer |
| a frame that is not complete, a whole answer | one answer: the request's `max_tokens` | - |
| control applications | `CONTROL_ONGOING` run, `QUEUED` wait | 429 |
| participants' questions to the coordinator | one open a process, answered within 5 s | asked again |
| traffic, pace | the newest 512 and 64 | the oldest goes |

Whose answer had to begin before its turn came, with signs of life, is refused in the body (api/entrance.py).
"""

from typing import Any, Final

from ray.serve.config import BackpressureConfig

# Above what HAProxy lets in, so that the layer's own admission decides, which answers in OpenAI's shape.
ENGINE_ONGOING: Final = 8192
ROUTER_ONGOING: Final = 1000
CONTROL_ONGOING: Final = 100
QUEUED: Final = 1000


def queued(requests: int = QUEUED) -> dict[str, Any]:
    """Serve's options for a bounded queue; by default it has none, and answers 503 without a time to come again."""
    return {
        "max_queued_requests": requests,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=2),
    }
