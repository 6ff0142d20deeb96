"""What is recorded when an artifact comes a stage nearer."""

import pytest

from rag_stack import metrics
from rag_stack.metrics import (
    ALL,
    ARTIFACT_LOAD_BYTES,
    ARTIFACT_LOAD_RATE,
    ARTIFACT_LOAD_SECONDS,
    MemoryRecorder,
    Metric,
    record_load,
)

LABELS = {"kind": "models", "stage": "load", "source": "runai_streamer"}


def test_a_load_is_seconds_bytes_and_their_rate() -> None:
    recorder = MemoryRecorder()
    record_load(recorder, **LABELS, seconds=2.0, size_bytes=6 * 10**9)
    assert recorder.values(ARTIFACT_LOAD_SECONDS, LABELS) == [2.0]
    assert recorder.values(ARTIFACT_LOAD_BYTES, LABELS) == [6 * 10**9]
    assert recorder.values(ARTIFACT_LOAD_RATE, LABELS) == [3.0]


@pytest.mark.parametrize(("seconds", "size_bytes"), [(2.0, 0), (0.0, 5)])
def test_without_bytes_or_time_there_is_no_rate(seconds: float, size_bytes: int) -> None:
    recorder = MemoryRecorder()
    record_load(recorder, **LABELS, seconds=seconds, size_bytes=size_bytes)
    assert recorder.values(ARTIFACT_LOAD_SECONDS, LABELS) == [seconds]
    assert recorder.values(ARTIFACT_LOAD_RATE, LABELS) == []


def test_a_histograms_buckets_grow_and_only_it_has_some() -> None:
    for metric in ALL:
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name


def test_only_a_counter_with_one_label_can_name_the_values_that_it_starts_with() -> None:
    for metric in ALL:
        assert not metric.starts_with or (metric.kind == "counter" and len(metric.labels) == 1), metric.name


def test_every_declared_metric_is_listed() -> None:
    declared = {value for value in vars(metrics).values() if isinstance(value, Metric)}
    assert set(ALL) == declared
