"""A replica's own clock: stages that follow each other, the engine's among them, the weights as a load."""

import os
import time

import pytest

from rag_stack.generation.birth import Birth
from rag_stack.generation.launcher import FORKED
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, ARTIFACT_LOAD_SECONDS, MemoryRecorder
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.start_report import stage_name
from rag_stack.timeline import Span, process_start


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture
def start(recorder: MemoryRecorder) -> ReplicaStart:
    born_s = process_start(os.getpid())
    return ReplicaStart(recorder, imports_s=(born_s + 0.001, born_s + 0.002))


def test_laps_follow_each_other_from_the_process_start(start: ReplicaStart) -> None:
    start.lap("set up replica")
    with start.beside.time("open town", kind="indexes"):
        start.lap("build app")
    start.lap("first token")
    report = start.report()
    assert report.started_s == pytest.approx(process_start(os.getpid()), abs=0.05)
    assert report.breakdown().unnamed_s == pytest.approx(0, abs=1e-6)
    names = [span.name for span in report.spans if not span.beside]
    assert names == ["start Ray worker", "import vLLM", "set up replica", "build app", "first token"]
    assert [span.name for span in report.spans if span.beside] == ["open town"]


def test_time_between_a_mark_and_the_last_lap_is_unnamed(start: ReplicaStart) -> None:
    start.lap("prepare engine")
    before = start.report().ready_s
    start.mark()
    start.lap("build app")
    gap = start.timeline.spans()[-1].start_s - before
    assert start.report().breakdown().unnamed_s == pytest.approx(gap, abs=1e-6)


def test_the_weights_are_a_load_for_each_worker(start: ReplicaStart, recorder: MemoryRecorder) -> None:
    start.mark()
    asked_s = start.report().ready_s
    weights = Span("load weights", asked_s + 2, asked_s + 4, "worker", "models", 10**9, "runai_streamer")
    worker = {"spans": [weights.to_wire()], "processes": [{"pid": 1, "started_s": asked_s + 1}]}
    start.engine_ready([worker, worker], ready_s=asked_s + 5)
    labels = {"kind": "models", "stage": "load", "source": "runai_streamer"}
    assert recorder.values(ARTIFACT_LOAD_SECONDS, labels) == [2, 2]
    assert recorder.values(ARTIFACT_LOAD_BYTES, labels) == [10**9, 10**9]
    names = [stage_name(span) for span in start.report().spans]
    assert names[-4:] == [
        "replica: configure engine",
        "worker: import vLLM",
        "worker: load weights",
        "replica: connect engine",
    ]


def test_a_replica_that_a_standby_forked_begins_with_its_launch(
    recorder: MemoryRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    birth = Birth(launched_s=now_s - 2, forked_s=now_s - 1.5, began_s=now_s - 900, ended_s=now_s - 890)
    monkeypatch.setenv(FORKED, birth.to_text())
    start = ReplicaStart(recorder, imports_s=(birth.began_s, birth.ended_s))
    start.beside.add("import vLLM", birth.began_s, birth.ended_s)
    start.lap("set up replica")
    report = start.report()
    assert report.started_s == birth.launched_s
    assert [span.name for span in report.spans] == ["fork", "start Ray worker", "set up replica"]
    assert report.breakdown().unnamed_s == pytest.approx(0, abs=1e-6)
