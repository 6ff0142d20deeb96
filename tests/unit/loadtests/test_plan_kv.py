"""The figures of `loadtests.plan_kv`, and that its questions leave a small cache something to drive out."""

import math

import pytest

from loadtests.plan_kv import predict, same_requests
from loadtests.plan_kv_figures import Run, build_report, draw
from loadtests.plan_kv_workload import documents, requests
from rag_stack.releases.kv_rate import kv_rates
from rag_stack.releases.kv_trace import TracedRequest


def run(blocks: int, *, predicted: float, measured: float) -> Run:
    return Run(blocks, blocks * 32, predicted, measured, 0.11, 0.1, 1.0, 2.0, 10, recorded=False)


def test_the_error_is_of_the_worst_capacity() -> None:
    result = build_report([run(64, predicted=0.5, measured=0.4), run(96, predicted=0.6, measured=0.6)], attainable=0.7)
    assert result.goals["plan_kv.error"].value == pytest.approx(0.25)
    assert not result.goals["plan_kv.error"].met
    assert result.arms["all"]["ttft_error"] == pytest.approx(0.1)


def test_a_run_that_found_nothing_misses() -> None:
    result = build_report([run(64, predicted=0.5, measured=0.0), run(96, predicted=0.6, measured=0.6)], attainable=0.7)
    assert result.goals["plan_kv.error"].value is None
    assert not result.goals["plan_kv.error"].met


def test_the_picture_is_drawn() -> None:
    figure = draw([run(64, predicted=0.5, measured=0.4)], {2048: 0.5, 4096: 0.6})
    assert len(figure.axes) == 2


def test_the_same_seed_asks_the_same_and_sessions_ask_again_later() -> None:
    texts = documents(60, seed=1)
    asked = requests(100, documents=texts, exponent=1.0, seed=7)
    assert asked == requests(100, documents=texts, exponent=1.0, seed=7)
    contexts = [each[0]["content"] for each in asked]
    apart = [contexts.index(context, n + 1) - n for n, context in enumerate(contexts) if context in contexts[n + 1 :]]
    assert len(apart) > 30
    assert sum(apart) / len(apart) > 3, "what is asked again at once would be found in any cache"
    rate = {}
    for blocks in (80, 1000):
        # A word a token, as good as any for what is shared.
        trace = [
            TracedRequest(n, tuple((word, 1) for word in f"{each[0]['content']} {each[1]['content']}".split()), ("", 0))
            for n, each in enumerate(asked)
        ]
        rate[blocks] = predict(trace, kv_rates({}, measured={}), blocks=blocks, block_tokens=32).hit_rate
    assert 0.1 < rate[80] < 0.9 * rate[1000]
    assert math.isfinite(rate[1000])


def test_requests_are_held_against_what_the_engine_said_of_each() -> None:
    segments = (("document", 64), ("question", 8))
    trace = [
        TracedRequest(float(n), segments, ("answer", 1), cached_tokens=cached)
        for n, cached in enumerate((0, 64, 32, 64))
    ]
    assert same_requests(trace, blocks=20, block_tokens=32) == 0.75
