"""What a running server's metrics tell of its prefix caches: coarser than a trace, since they name no prefix.

And too good where prompts are read ahead of their requests: vLLM counts such a prompt twice, and finds it the second
time. A trace counts it once, with what had been read ahead among its `cached_tokens`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rag_stack.errors import NotMeasuredError
from rag_stack.releases.kv_plan import Verdict
from rag_stack.releases.storage_rate import Figure

_SAMPLE: Final = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL: Final = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_WELL_FOUND: Final = 0.8


@dataclass(frozen=True, slots=True)
class ServedTokens:
    """Of all engines together, since they started: 0 or None where a server does not tell.

    `capacity_tokens` and `block_tokens` are of one engine, `capacity_sum` of all of them.
    """

    engines: int
    query_tokens: float
    hit_tokens: float
    generated_tokens: float
    requests: float
    ttft_s: float | None
    capacity_tokens: int | None
    capacity_sum: float
    block_tokens: int | None
    prefill: Figure | None
    # Prompts that were read ahead of their requests.
    read_ahead: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Of the prompts' tokens, those that were found."""
        return self.hit_tokens / self.query_tokens if self.query_tokens else 0.0

    @property
    def computed_tokens(self) -> float:
        """What has been put into the caches."""
        return self.query_tokens - self.hit_tokens + self.generated_tokens


def read_metrics(text: str) -> ServedTokens:
    """From Prometheus's text, of vLLM or of a Ray cluster. Raises NotMeasuredError where no prompt has been counted."""
    totals: dict[str, float] = defaultdict(float)
    each: dict[str, list[float]] = defaultdict(list)
    blocks: list[tuple[int, int]] = []
    read_ahead = 0.0
    for name, labels, value in _samples(text.splitlines()):
        totals[name] += value
        each[name].append(value)
        if name == "rag_stack_prefills" and labels.get("outcome") == "started":
            read_ahead += value
        if name == "vllm_cache_config_info" and labels.get("num_gpu_blocks", "").isdecimal():
            blocks.append((int(labels["num_gpu_blocks"]), int(labels["block_size"])))
    queries = totals["vllm_prefix_cache_queries"]
    if not queries:
        raise NotMeasuredError(
            "these metrics count no prompt (vllm:prefix_cache_queries): give the address of a server's metrics, as "
            "`rag-stack serve` prints it, once it has answered with prefix caching and statistics on"
        )
    capacities = each["rag_stack_kv_cache_tokens"] or [float(count * size) for count, size in blocks]
    seconds, hits = totals["vllm_request_prefill_time_seconds_sum"], totals["vllm_prefix_cache_hits"]
    told = f"{totals['vllm_request_prefill_time_seconds_count']:.0f} prefills of the server"
    count = totals["vllm_time_to_first_token_seconds_count"]
    return ServedTokens(
        engines=max(1, len(each["vllm_prefix_cache_queries"])),
        query_tokens=queries,
        hit_tokens=hits,
        generated_tokens=totals["vllm_generation_tokens"],
        requests=count,
        ttft_s=totals["vllm_time_to_first_token_seconds_sum"] / count if count else None,
        capacity_tokens=int(min(capacities)) if capacities else None,
        capacity_sum=sum(capacities),
        block_tokens=blocks[0][1] if blocks else None,
        prefill=Figure((queries - hits) / seconds, "measured", told) if seconds and queries > hits else None,
        read_ahead=read_ahead,
    )


def judge(served: ServedTokens) -> Verdict:
    """What can be said without a trace."""
    found = f"{served.hit_rate:.0%} of {served.query_tokens:.0f} tokens of prompts were found"
    if served.read_ahead:
        found += f" (too good: {served.read_ahead:.0f} prompts were read ahead, so that they count twice)"
    if served.capacity_sum and served.computed_tokens <= served.capacity_sum:
        filled = f"{served.computed_tokens:.0f} tokens were computed, and {served.capacity_sum:.0f} fit"
        return Verdict("keep", f"nothing has been driven out yet: {filled}. So no offload could have gained: {found}")
    if served.hit_rate >= _WELL_FOUND:
        return Verdict("keep", f"the caches do well: {found}, so an offload has little left to gain")
    return Verdict(
        "trace",
        f"{found}, and these metrics cannot tell whether the others were asked for before: at most the rest could come "
        "from an offload. Record a trace (RAG_STACK_KV_TRACE=DIRECTORY) and ask again with --trace",
    )


def _samples(lines: Iterable[str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Names as vLLM and we have them, without Ray's prefix and a counter's ending."""
    for line in lines:
        found = _SAMPLE.match(line)
        if found is None:
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        name = found[1].replace(":", "_").removeprefix("ray_").removesuffix("_total")
        yield name, dict(_LABEL.findall(found[2] or "")), value
