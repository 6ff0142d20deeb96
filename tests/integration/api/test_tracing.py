"""Traces of requests, from a real server to a real collector."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from rag_stack.api.admission import Admission, Limits
from rag_stack.metrics import TRACE_SPANS, MemoryRecorder
from rag_stack.serving.start_report import StartReport
from rag_stack.timeline import Span
from rag_stack.tracing.tracer import UNTRACED, Tracer, open_tracer
from tests.collector import Collector, collector
from tests.engine import build_engine
from tests.layer import build_layer
from tests.servers import closed_port, serve

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
STAGES = ("admission", "wait for a search thread", "embed", "search", "prompt", "engine", "cite")
LIMITS = Limits(slots=1, queue=8, waiting_tokens=1 << 20, target_s=30, held=0, held_s=0, heartbeat_s=30)
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "What does the lighthouse burn?"}]}


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which the environment points, as an operator sets it."""
    with collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running


@pytest.fixture
def tracer(collected: Collector) -> Iterator[Tracer]:
    tracer = open_tracer(MemoryRecorder(), {"OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint})
    yield tracer
    tracer.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_one_trace_with_a_span_for_each_stage(
    collected: Collector, tracer: Tracer, tmp_path: Path, stream: bool
) -> None:
    engine = build_engine()
    app = build_layer(engine, tmp_path, admission=Admission(LIMITS, recorder=MemoryRecorder()), tracer=tracer)
    with serve(app) as url:
        sent = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1", "x-request-id": "req-7"}
        answer = httpx.post(f"{url}/v1/chat/completions", json={**QUESTION, "stream": stream}, headers=sent)
        assert answer.status_code == 200
        spans = collected.wait_for("POST", *STAGES)
    root = spans["POST"]
    assert (root.trace, root.parent) == (TRACE, CALLER)
    assert root.attributes == {
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "request_id": "req-7",
    }
    for stage in STAGES:
        assert (spans[stage].trace, spans[stage].parent) == (TRACE, root.id), stage
        assert root.start_s <= spans[stage].start_s <= spans[stage].end_s <= root.end_s, stage
    assert spans["engine"].events == ("first token", "last token")
    assert spans["search"].end_s <= spans["prompt"].start_s <= spans["engine"].start_s <= spans["cite"].start_s
    assert root.resource["service.name"] == "rag-stack"


async def test_the_engine_is_told_that_our_span_is_the_parent_of_its_own(
    collected: Collector, tracer: Tracer, tmp_path: Path
) -> None:
    engine, told = build_engine(), []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        told.append({key.decode(): value.decode() for key, value in scope["headers"]})
        await engine(scope, receive, send)

    watched.state = engine.state  # type: ignore[attr-defined]
    app = build_layer(watched, tmp_path, tracer=tracer)  # type: ignore[arg-type]
    await _post(app, headers={"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"})
    span = collected.wait_for("engine")["engine"]
    assert told[-1]["traceparent"] == f"00-{TRACE}-{span.id}-01"
    assert told[-1]["tracestate"] == "vendor=1"


async def test_who_names_no_parent_gets_a_trace_of_its_own_and_probes_get_none(
    collected: Collector, tracer: Tracer, tmp_path: Path
) -> None:
    app = build_layer(build_engine(), tmp_path, tracer=tracer)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rag") as client:
        for _ in range(3):
            assert (await client.get("/health")).is_success
    await _post(app)
    await _post(app)
    collected.wait_for("POST", "cite")
    tracer.close()
    roots = [span for span in collected.spans if not span.parent]
    assert [span.name for span in roots] == ["POST", "POST"]
    assert len({span.trace for span in roots}) == 2


async def test_what_a_client_did_not_want_sampled_is_not_sent(
    collected: Collector, tracer: Tracer, tmp_path: Path
) -> None:
    app = build_layer(build_engine(), tmp_path, tracer=tracer)
    await _post(app, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    await _post(app)
    tracer.close()
    assert collected.spans
    assert TRACE not in {span.trace for span in collected.spans}


async def test_an_answer_that_fails_says_so_in_its_spans(collected: Collector, tracer: Tracer, tmp_path: Path) -> None:
    engine = build_engine()
    engine.state.error = (503, "no")
    await _post(build_layer(engine, tmp_path, tracer=tracer), status=503)
    spans = collected.wait_for("POST", "engine")
    assert spans["POST"].attributes["http.response.status_code"] == 503
    assert spans["engine"].attributes["http.response.status_code"] == 503


def test_a_start_is_a_trace_with_its_stages(collected: Collector, tracer: Tracer) -> None:
    load = Span("load weights", 101.0, 104.0, "worker", "models", 1000, "disk")
    StartReport(100.0, 105.0, (Span("import vLLM", 100.0, 101.0, "replica"), load)).trace(tracer)
    spans = collected.wait_for("start", "replica: import vLLM", "worker: load weights")
    start, loaded = spans["start"], spans["worker: load weights"]
    assert (start.parent, start.start_s, start.end_s) == ("", 100.0, 105.0)
    assert (loaded.trace, loaded.parent, loaded.start_s, loaded.end_s) == (start.trace, start.id, 101.0, 104.0)
    assert loaded.attributes == {
        "process": "worker",
        "artifact.kind": "models",
        "artifact.source": "disk",
        "artifact.bytes": 1000,
    }


async def test_a_collector_that_is_away_costs_no_request_and_what_is_lost_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    recorder = MemoryRecorder()
    tracer = open_tracer(recorder, {"OTEL_EXPORTER_OTLP_ENDPOINT": "set"})
    app = build_layer(build_engine(), tmp_path, tracer=tracer)
    for _ in range(10):
        await _post(app)
    tracer.close()
    lost = {outcome: sum(recorder.values(TRACE_SPANS, {"outcome": outcome})) for outcome in ("failed", "dropped")}
    assert lost["dropped"] > 0
    # Ten requests of seven spans each; what the thread still tries when nobody waits any more is not told.
    assert 70 - 16 <= sum(lost.values()) <= 70
    assert recorder.values(TRACE_SPANS, {"outcome": "sent"}) == []


def test_without_an_endpoint_nothing_is_traced_and_nothing_imported() -> None:
    assert open_tracer(MemoryRecorder(), {}) is UNTRACED
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert open_tracer(MemoryRecorder(), {**on, "OTEL_SDK_DISABLED": "true"}) is UNTRACED
    assert open_tracer(MemoryRecorder(), {**on, "OTEL_TRACES_EXPORTER": "none"}) is UNTRACED
    program = (
        "import sys, rag_stack.api.gate, rag_stack.api.traced_engine;"
        "from rag_stack.metrics import MemoryRecorder; from rag_stack.tracing.tracer import open_tracer;"
        "open_tracer(MemoryRecorder(), {});"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_protocol_that_is_not_spoken_stops_nobody_and_is_told_with_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert open_tracer(MemoryRecorder(), asked) is UNTRACED
    assert "'grpc'" in caplog.text
    assert "4318" in caplog.text


@pytest.mark.parametrize("places", ["256", "many"])
def test_a_setting_that_the_sdk_refuses_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, places: str
) -> None:
    """256 is less than the 512 of a batch, by default."""
    caplog.set_level("WARNING", "ray.serve")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", places)
    assert open_tracer(MemoryRecorder(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}) is UNTRACED
    assert "OTEL_" in caplog.text


@pytest.mark.parametrize("sampler", ["parentbased_traceidratio", "traceidratio"])
async def test_starts_are_traced_whatever_share_of_requests_is(
    collected: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    tracer = open_tracer(MemoryRecorder(), {"OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint})
    await _post(build_layer(build_engine(), tmp_path, tracer=tracer))
    StartReport(100.0, 105.0, (Span("import vLLM", 100.0, 101.0, "replica"),)).trace(tracer)
    tracer.close()
    assert set(collected.wait_for("start", "replica: import vLLM")) == {"start", "replica: import vLLM"}


def test_who_wants_no_trace_gets_none_of_a_start(collected: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracer = open_tracer(MemoryRecorder(), {"OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint})
    StartReport(100.0, 105.0, (Span("import vLLM", 100.0, 101.0, "replica"),)).trace(tracer)
    tracer.close()
    assert collected.spans == []


async def _post(app: ASGIApp, *, headers: dict[str, str] | None = None, status: int = 200) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rag") as client:
        answer = await client.post("/v1/chat/completions", json=QUESTION, headers=headers)
        assert answer.status_code == status, answer.text


def test_tracing_that_is_off_costs_a_request_microseconds() -> None:
    """1 us of CPU where this was written; the bound is one that only real work would miss."""
    requests = 2000
    began_s = time.process_time()
    for _ in range(requests):
        with UNTRACED.request("POST", ()) as span:
            for stage in STAGES:
                UNTRACED.add(stage, 0.0, 1.0)
            span.note({"http.route": "/v1/chat/completions"})
    assert (time.process_time() - began_s) / requests < 50e-6
