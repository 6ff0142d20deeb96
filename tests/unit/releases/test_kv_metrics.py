"""What is read from Prometheus's text, of vLLM and of Ray, and what is made of it."""

import pytest

from rag_stack.errors import NotMeasuredError
from rag_stack.releases.kv_metrics import judge, read_metrics

VLLM = """
# HELP vllm:prefix_cache_queries_total x
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 10000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 4000.0
vllm:generation_tokens_total{engine="0",model_name="m"} 500.0
vllm:time_to_first_token_seconds_sum{engine="0"} 30.0
vllm:time_to_first_token_seconds_count{engine="0"} 20.0
vllm:request_prefill_time_seconds_sum{engine="0"} 3.0
vllm:request_prefill_time_seconds_count{engine="0"} 20.0
vllm:cache_config_info{block_size="128",engine="0",num_gpu_blocks="40"} 1.0
a_line_of_something_else
"""


def test_vllms_own() -> None:
    found = read_metrics(VLLM)
    assert found.hit_rate == pytest.approx(0.4)
    assert (found.capacity_tokens, found.block_tokens, found.engines) == (5120, 128, 1)
    assert found.ttft_s == pytest.approx(1.5)
    assert found.prefill is not None
    assert found.prefill.value == pytest.approx(2000)
    assert judge(found).choice == "trace"


def test_of_a_cluster_our_capacity_goes_first_and_engines_add_up() -> None:
    rows = [f'ray_vllm_prefix_cache_queries_total{{WorkerId="{n}"}} 1000\n' for n in "ab"]
    rows += [f'ray_rag_stack_kv_cache_tokens{{WorkerId="{n}"}} 8000\n' for n in "ab"]
    found = read_metrics("".join(rows))
    assert (found.engines, found.capacity_tokens, found.capacity_sum) == (2, 8000, 16000)
    verdict = judge(found)
    assert verdict.choice == "keep"
    assert "nothing has been driven out" in verdict.text


def test_a_cache_that_finds_most_is_left_alone() -> None:
    assert judge(read_metrics(VLLM.replace("4000.0", "9000.0").replace('"40"', '"4"'))).choice == "keep"


@pytest.mark.parametrize("text", ["", "<html></html>", "vllm:prefix_cache_queries_total 0", "x{a=1} NaN"])
def test_without_a_prompt_nothing_is_said(text: str) -> None:
    with pytest.raises(NotMeasuredError, match="count no prompt"):
        read_metrics(text)


def test_prompts_that_were_read_ahead_are_told_since_they_count_twice() -> None:
    rows = "".join(f'rag_stack_prefills_total{{outcome="{told}"}} 7.0\n' for told in ("started", "used"))
    found = read_metrics(VLLM + rows)
    assert found.read_ahead == 7
    assert "7 prompts were read ahead" in judge(found).text
    assert "read ahead" not in judge(read_metrics(VLLM)).text
