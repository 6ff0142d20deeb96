"""How a start is told: stages of several processes that add up, as metrics and as what a client sees."""

from dataclasses import asdict
from typing import Any

import pytest

from rag_stack.generation.birth import Birth
from rag_stack.metrics import START_SECONDS, MemoryRecorder
from rag_stack.serving.start_report import StartReport, engine_spans, stage_name
from rag_stack.timeline import Span, break_down

WORKER = (
    Span("set up worker", 30, 31, "worker"),
    Span("load weights", 31, 33, "worker", "models", 10**9, "auto"),
    Span("warm up engine", 33, 34, "worker"),
)


def worker_report(*births: float, spans: tuple[Span, ...] = WORKER) -> dict[str, Any]:
    return {
        "spans": [span.to_wire() for span in spans],
        "processes": [{"pid": n, "started_s": born} for n, born in enumerate(births)],
    }


def named(spans: list[Span]) -> dict[str, tuple[float, float]]:
    return {stage_name(span): (span.start_s, span.end_s) for span in spans}


def test_the_engine_starts_core_and_worker_one_after_the_other() -> None:
    spans = named(engine_spans([worker_report(20, 12)], asked_s=10, ready_s=36))
    assert spans["replica: configure engine"] == (10, 12)
    assert spans["engine core: import vLLM"] == (12, 20)
    assert spans["worker: import vLLM"] == (20, 30)
    assert spans["worker: load weights"] == (31, 33)
    assert spans["replica: connect engine"] == (34, 36)


def test_a_worker_inside_the_core_has_no_process_of_its_own() -> None:
    """Its parent is then the replica, which is older than the engine's start."""
    spans = named(engine_spans([worker_report(12, 3)], asked_s=10, ready_s=36))
    assert spans["worker: import vLLM"] == (12, 30)
    assert "engine core: import vLLM" not in spans


def test_forked_processes_show_what_they_waited_for_and_the_import_beside() -> None:
    core = Birth(launched_s=12, forked_s=14, began_s=2, ended_s=13.5)
    worker = Birth(launched_s=16, forked_s=16.5, began_s=2, ended_s=13.5, parent=core)
    report = worker_report(16.5, 14) | {"birth": asdict(worker)}
    spans = engine_spans([report], asked_s=10, ready_s=36)
    at = named(spans)
    assert at["replica: configure engine"] == (10, 12)
    assert at["engine core: fork"] == (12, 14)
    assert at["engine core: set up engine core"] == (14, 16)
    assert at["worker: fork"] == (16, 16.5)
    assert at["worker: take over settings"] == (16.5, 30)
    assert at["fork server: import vLLM"] == (2, 13.5)
    assert [span.name for span in spans if span.beside] == ["import vLLM"]
    whole = break_down(spans, start_s=10, end_s=36)
    assert whole.unnamed_s == pytest.approx(0)


def test_a_worker_forked_by_a_core_that_began_as_a_python_knows_only_of_itself() -> None:
    """Its parent was refused: some variable had changed."""
    worker = Birth(launched_s=16, forked_s=17, began_s=2, ended_s=9)
    at = named(engine_spans([worker_report(17) | {"birth": asdict(worker)}], asked_s=10, ready_s=36))
    assert at["replica: configure engine"] == (10, 16)
    assert "engine core: fork" not in at


def test_the_slowest_of_several_workers_is_shown() -> None:
    late = tuple(Span(s.name, s.start_s + 5, s.end_s + 5, s.process, s.kind, s.size_bytes, s.source) for s in WORKER)
    reports = [worker_report(20, 12), worker_report(21, 12, spans=late)]
    spans = named(engine_spans(reports, asked_s=10, ready_s=45))
    assert spans["worker: load weights"] == (36, 38)
    assert spans["worker: import vLLM"] == (21, 35)


@pytest.mark.parametrize("reports", [[], [worker_report(20, 12, spans=())]])
def test_an_engine_that_does_not_tell_is_one_stage(reports: list[dict[str, Any]]) -> None:
    """A release may name a worker class of its own."""
    assert named(engine_spans(reports, asked_s=10, ready_s=36)) == {"engine: start engine": (10, 36)}


def test_a_worker_whose_processes_are_not_seen_begins_with_its_first_step() -> None:
    spans = named(engine_spans([worker_report()], asked_s=10, ready_s=36))
    assert spans["replica: configure engine"] == (10, 30)


@pytest.fixture
def report() -> StartReport:
    spans = (
        Span("import vLLM", 0, 10, "replica"),
        *engine_spans([worker_report(20, 12)], asked_s=10, ready_s=36),
        Span("open town", 5, 15, "replica", "indexes", 0, "cache", beside=True),
        Span("first token", 37, 40, "replica"),
    )
    return StartReport(0, 40, spans)


def test_the_metrics_add_up_to_the_whole(report: StartReport) -> None:
    recorder = MemoryRecorder()
    report.record(recorder)
    stages = {stage_name(span) for span in report.spans} | {"unnamed"}
    values = {stage: recorder.values(START_SECONDS, {"stage": stage}) for stage in stages}
    assert sum(value for found in values.values() for value in found) == pytest.approx(40)
    assert values["unnamed"] == [1]
    assert values["worker: load weights"] == [2]
    assert values["replica: open town"] == []  # it ran beside, and nothing waited for it


def test_a_client_sees_stages_that_add_up(report: StartReport) -> None:
    card = report.to_card()
    assert sum(stage["critical_seconds"] for stage in card["stages"]) + card["unnamed_seconds"] == card["seconds"] == 40
    load = next(stage for stage in card["stages"] if stage["name"] == "load weights")
    assert load == {
        "name": "load weights",
        "process": "worker",
        "start_seconds": 31,
        "seconds": 2,
        "critical_seconds": 2,
        "kind": "models",
        "source": "auto",
        "size_bytes": 10**9,
        "gb_per_s": 0.5,
    }
    starts = [stage["start_seconds"] for stage in card["stages"]]
    assert starts == sorted(starts)


def test_a_report_crosses_a_process_border(report: StartReport) -> None:
    assert StartReport.from_wire(report.to_wire()) == report
