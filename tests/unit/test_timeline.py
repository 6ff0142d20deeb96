"""Every instant of a start belongs to one span, and the parts add up to the whole."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_stack.timeline import Breakdown, Span, Timeline, break_down, process_start

times = st.floats(-5, 25, allow_nan=False)
spans = st.lists(
    st.builds(
        lambda name, a, b, beside: Span(name, min(a, b), max(a, b), beside=beside),
        st.text("abc", min_size=1, max_size=3),
        times,
        times,
        st.booleans(),
    ),
    max_size=8,
)


def critical(breakdown: Breakdown) -> dict[str, float]:
    return {stage.span.name: stage.critical_s for stage in breakdown.stages}


def test_stages_that_follow_each_other_count_whole() -> None:
    breakdown = break_down([Span("fetch", 10, 12), Span("load", 12, 15)], start_s=10, end_s=16)
    assert critical(breakdown) == {"fetch": 2, "load": 3}
    assert (breakdown.seconds, breakdown.unnamed_s) == (6, 1)
    assert breakdown.unnamed_share == pytest.approx(1 / 6)


def test_an_inner_stage_is_taken_out_of_the_outer_one() -> None:
    breakdown = break_down([Span("deploy", 0, 10), Span("load", 4, 6)], start_s=0, end_s=10)
    assert critical(breakdown) == {"deploy": 8, "load": 2}


def test_what_runs_beside_counts_only_where_nothing_else_runs() -> None:
    beside = Span("open index", 2, 9, beside=True)
    breakdown = break_down([Span("start engine", 0, 6), beside, Span("first token", 10, 12)], start_s=0, end_s=12)
    assert critical(breakdown) == {"start engine": 6, "open index": 3, "first token": 2}
    assert breakdown.unnamed_s == 1


def test_what_lies_outside_the_whole_does_not_count() -> None:
    breakdown = break_down([Span("early", -3, 1), Span("late", 9, 30), Span("after", 20, 30)], start_s=0, end_s=10)
    assert critical(breakdown) == {"early": 1, "late": 1, "after": 0}
    assert breakdown.unnamed_s == 8


@given(spans)
def test_the_parts_add_up(some: list[Span]) -> None:
    breakdown = break_down(some, start_s=0, end_s=20)
    parts = [stage.critical_s for stage in breakdown.stages]
    assert sum(parts) + breakdown.unnamed_s == pytest.approx(20)
    assert min([*parts, breakdown.unnamed_s]) >= 0
    assert all(part <= stage.span.seconds + 1e-9 for part, stage in zip(parts, breakdown.stages, strict=True))


def test_nothing_at_all_is_unnamed() -> None:
    assert break_down([], start_s=3, end_s=5).unnamed_share == 1
    assert break_down([], start_s=5, end_s=5).unnamed_share == 0


def test_a_block_that_fails_leaves_no_span() -> None:
    timeline = Timeline(process="worker")
    with pytest.raises(ValueError, match="no"), timeline.time("load"):
        raise ValueError("no")
    with timeline.time("open", kind="indexes", source="cache"):
        pass
    (span,) = timeline.spans()
    assert (span.name, span.process, span.kind, span.source) == ("open", "worker", "indexes", "cache")


def test_a_clock_that_was_set_back_gives_no_negative_seconds() -> None:
    assert Span("load", 10, 9, size_bytes=5).seconds == 0
    assert Span("load", 10, 9, size_bytes=5).gb_per_s == 0


def test_a_span_crosses_a_process_border() -> None:
    span = Span("load weights", 1.5, 3.5, "worker", "models", 4 * 10**9, "auto")
    assert Span.from_wire(span.to_wire()) == span
    assert span.gb_per_s == 2


def test_a_process_knows_when_it_started() -> None:
    before = time.time()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert process_start(child.pid) == pytest.approx(before, abs=2)
        assert process_start(os.getpid()) < process_start(child.pid)
    finally:
        child.communicate(b"\n")
    with pytest.raises(OSError, match=str(child.pid)):
        process_start(child.pid)
