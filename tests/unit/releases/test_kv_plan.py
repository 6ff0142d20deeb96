"""Predictions and verdicts from small traces whose answer is plain."""

import random

import pytest

from rag_stack.errors import ConfigError
from rag_stack.releases.kv_plan import KvSizes, plan_kv, ttft_s
from rag_stack.releases.kv_rate import KvRates, fitted, kv_rates
from rag_stack.releases.kv_simulation import Served, hit_rate, simulate, working_set
from rag_stack.releases.kv_trace import TracedRequest
from rag_stack.releases.storage_rate import Figure

BLOCK = 16
DOCUMENT = 10 * BLOCK


def asked(number: int, document: int, *, seconds: float | None = None) -> TracedRequest:
    segments = ((f"document {document}", DOCUMENT), (f"question {number}", 8))
    return TracedRequest(float(number), segments, (f"answer {number}", 4), seconds=seconds)


def in_turn(documents: int, rounds: int) -> list[TracedRequest]:
    """Each document once a round: the worst that there is for a cache that holds all but one."""
    return [asked(n, n % documents) for n in range(documents * rounds)]


def sizes(documents: float, *, memory: int = 1000, disk: int = 1000) -> KvSizes:
    return KvSizes(BLOCK, int(documents * 11), memory, disk)


def rates(**given: float) -> KvRates:
    return kv_rates(
        {"prefill": 1000.0, "fixed-ms": 10.0, "memory": 10.0, "disk": 1.0, "token-bytes": 1e5} | given, measured={}
    )


def test_a_cache_that_holds_all_finds_all_but_the_first_time() -> None:
    found = plan_kv([in_turn(5, 10)], sizes(6), rates(), offloads=True)
    assert found.hit_rate == pytest.approx(45 * DOCUMENT / (50 * (DOCUMENT + 8)))
    assert found.working_set.distinct_tokens == found.working_set.shared_tokens == 5 * DOCUMENT
    assert found.verdict.choice == "keep"


def test_one_that_is_a_little_too_small_finds_little_and_memory_behind_it_the_rest() -> None:
    found = plan_kv([in_turn(5, 10)], sizes(4), rates(), offloads=True)
    assert found.hit_rate < 0.3, "what is left are beginnings, which go last"
    none, memory, disk = found.strategies
    assert memory.cached_share + memory.memory_share == pytest.approx(found.attainable)
    assert memory.ttft_mean_s < none.ttft_mean_s
    assert disk.disk_share == 0, "memory has it already"
    assert found.verdict.choice == "cpu"


def test_a_disk_is_worth_it_where_memory_holds_too_little() -> None:
    found = plan_kv([in_turn(20, 10)], sizes(4, memory=50), rates(disk=5.0), offloads=True)
    assert found.verdict.choice == "disk"
    assert found.strategies[2].disk_share > 0.5


def test_loading_that_takes_longer_than_computing_is_advised_against() -> None:
    slow = rates(prefill=100_000.0, memory=0.1, disk=0.1)
    assert plan_kv([in_turn(5, 10)], sizes(4), slow, offloads=True).verdict.choice == "keep"


def test_where_vllm_offloads_nothing_a_larger_cache_is_advised() -> None:
    verdict = plan_kv([in_turn(5, 10)], sizes(4), rates(), offloads=False).verdict
    assert verdict.choice == "enlarge"
    assert "2 times as large would do" in verdict.text


def test_prompts_that_share_nothing_need_no_cache() -> None:
    verdict = plan_kv([[asked(n, n) for n in range(30)]], sizes(4), rates(), offloads=True).verdict
    assert verdict.choice == "share"


def test_each_replica_has_its_own_cache() -> None:
    together = [asked(n, n % 6) for n in range(60)]
    apart = [[r for n, r in enumerate(together) if n % 6 // 3 == side] for side in (0, 1)]
    assert plan_kv([together], sizes(4), rates(), offloads=False).hit_rate == 0
    assert plan_kv(apart, sizes(4), rates(), offloads=False).hit_rate > 0.8


def test_requests_that_run_side_by_side_hold_their_blocks() -> None:
    alone = [asked(n, n % 2) for n in range(20)]
    beside = [asked(n, n % 2, seconds=1.5) for n in range(20)]
    small = int(2.2 * 11)
    assert hit_rate(simulate(alone, capacity_blocks=small, block_tokens=BLOCK)) > 0.8
    assert hit_rate(simulate(beside, capacity_blocks=small, block_tokens=BLOCK)) > 0.8
    assert len(simulate(beside, capacity_blocks=12, block_tokens=BLOCK)) == 20, "they wait for one another"


def test_a_prompt_that_fits_in_no_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="168 tokens, and the cache holds 80"):
        simulate([asked(0, 0)], capacity_blocks=5, block_tokens=BLOCK)


def test_a_first_token_is_what_is_computed_and_what_is_loaded() -> None:
    served = Served(1000, 200, (320, 160))
    # 320 tokens computed at 1000 a second; 32 MB at 10 GB/s, 16 MB at 1 GB/s.
    assert ttft_s(served, rates(), block_tokens=BLOCK) == pytest.approx(0.01 + 0.32 + 0.0032 + 0.016)


def test_the_rates_come_from_the_trace_although_some_waited() -> None:
    draw = random.Random(3)
    requests = []
    for n in range(60):
        tokens = draw.randrange(50, 1000)
        late = 2.0 if n % 5 == 0 else 0.0
        requests.append(
            TracedRequest(n, (("p", tokens),), ("a", 1), ttft_s=0.05 + tokens / 2000 + late, cached_tokens=0)
        )
    found = kv_rates({}, measured={}, traces=[requests])
    assert found.prefill.value == pytest.approx(2000, rel=0.05)
    assert found.fixed_s.value == pytest.approx(0.05, abs=0.03)
    assert found.prefill.basis == "measured"
    assert found.assumed == ("memory", "disk", "token_bytes")


def test_too_few_or_senseless_first_tokens_fit_nothing() -> None:
    assert fitted([asked(0, 0)]) == {}
    backwards = [TracedRequest(n, (("p", n + 1),), ("a", 1), ttft_s=1.0 - n / 100, cached_tokens=0) for n in range(20)]
    assert fitted(backwards) == {}


def test_what_is_given_goes_before_what_is_measured() -> None:
    measured = {"prefill": Figure(7.0, "measured", "x")}
    assert kv_rates({}, measured=measured).prefill.value == 7.0
    assert kv_rates({"prefill": 9.0}, measured=measured).prefill == Figure(9.0, "given")
    for wrong in ({"prefil": 1.0}, {"prefill": 0.0}, {"disk": float("nan")}):
        with pytest.raises(ConfigError, match="--rate"):
            kv_rates(wrong, measured={})


def test_the_working_set_counts_what_is_asked_for_again() -> None:
    found = working_set([asked(0, 0), asked(1, 0), asked(2, 1)], block_tokens=BLOCK)
    assert (found.distinct_tokens, found.shared_tokens) == (2 * DOCUMENT, DOCUMENT)
