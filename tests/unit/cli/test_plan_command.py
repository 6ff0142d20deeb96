"""`rag-stack plan storage` as a shell sees it."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner, Result

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.main import app
from rag_stack.config import ArtifactsConfig, load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.measured_start import MeasuredStart, Move
from rag_stack.releases.pinned import pin
from rag_stack.releases.start_history import Start, StartHistory, label_of, write_history
from tests.servers import serve

RESULTS = Path(__file__).parents[3] / "loadtests" / "results"
MB = 10**6
RELEASE = """
name: town
model: {name: words}
embedder: {name: vectors, version: v1}
stores: [{name: docs, index: notes}]
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of 8 MB of weights, 1 MB of embedder and 3 MB of index; nothing has been started."""
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    (tmp_path / "release.yaml").write_text(RELEASE)
    catalog = Catalog(open_store(f"file://{tmp_path}/store"))
    for kind, name, size in (("models", "words", 8), ("models", "vectors", 1), ("indexes", "notes", 3)):
        source = tmp_path / f"source-{name}"
        source.mkdir()
        (source / "w.bin").write_bytes(bytes(size * MB))
        manifest = catalog.publish(source, kind=kind, name=name, metadata={}, version="v1")  # type: ignore[arg-type]
        catalog.promote(manifest.ref)
    return tmp_path


def run(directory: Path, *arguments: Any) -> Result:
    return CliRunner().invoke(app, ["plan", "storage", f"{directory}/release.yaml", *map(str, arguments)])


def start_once(directory: Path, *, label: str | None = None) -> None:
    """A start of 20 s and what it read: 4 MB a second from the store, 8 MB a second into the engine."""
    measured = MeasuredStart(20.0, (Move("origin", 12 * MB, 3.0), Move("engine", 8 * MB, 1.0)))
    tiers = open_tiers(ArtifactsConfig(root=f"file://{directory}/store"), MemoryRecorder())
    label = label or label_of(pin(load_release(directory / "release.yaml"), tiers).release)
    history = StartHistory().with_start(Start(label, "origin", 1.0, 24.0, measured))
    write_history(open_store(f"file://{directory}/store"), "town", history)


def test_nothing_is_made_up_where_nothing_has_started(directory: Path) -> None:
    result = run(directory, "--recovery-time", 60)
    assert result.exit_code == 1
    assert "no start of this release has been measured: start the server once" in result.stderr


def test_kept_starts_say_which_overlay_meets_the_target(directory: Path) -> None:
    start_once(directory)
    # 15 s for the pod, 20 s fixed, 12 MB in 3 s, 8 MB in 1 s.
    result = run(directory, "--recovery-time", 39)
    assert result.exit_code == 0, result.output
    assert "the least that has 1 replica in 39 s after the loss of a node: object-store" in result.stdout
    assert "if what is assumed holds: node, pod" in result.stdout
    assert "measured: 1 kept start" in result.stdout
    assert "0.500 GB/s  assumed" in result.stdout


def test_starts_of_other_settings_are_better_than_none_and_said_to_be_such(directory: Path) -> None:
    start_once(directory, label="other")
    told = json.loads(run(directory, "--recovery-time", 60, "--json").stdout)
    assert told["fixed_seconds"]["where"] == "1 kept start, of other weights or engine settings"


def test_json_has_seconds_and_bytes_by_tier(directory: Path) -> None:
    start_once(directory)
    options = ("--burst", 2, "--rate", "peer=0.001", "--seconds", "pod=5", "--seconds", "node=30", "--json")
    result = run(directory, "--recovery-time", 100, *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["choice"] == "object-store"
    assert told["bytes"] == {"weights": 8 * MB, "embedder": MB, "reranker": 0, "indexes": 3 * MB}
    assert told["gb_per_s"]["origin"] == {"value": 0.004, "basis": "measured", "where": "1 kept start"}
    assert told["gb_per_s"]["peer"]["basis"] == told["wait_seconds"]["node"]["basis"] == "given"
    assert told["gb_per_s"]["snapshot"]["basis"] == "assumed"
    store = next(each for each in told["overlays"] if each["name"] == "object-store")
    assert store["losses"]["node"] == {
        "seconds": 5 + 30 + 20 + 6 + 1,
        "wait_seconds": 35,
        "fixed_seconds": 20,
        "tiers": {
            "origin": {"bytes": 12 * MB, "seconds": 3.0},
            "peer": {"bytes": 12 * MB, "seconds": 6.0},
            "engine": {"bytes": 16 * MB, "seconds": 1.0},
        },
    }


def test_exit_code_3_where_none_meets_it(directory: Path) -> None:
    start_once(directory)
    result = run(directory, "--recovery-time", 1, "--burst", 8)
    assert result.exit_code == 3
    assert "no overlay has 8 replicas in 1 s after the loss of a node" in result.stdout


def test_recorded_reports_are_enough(directory: Path) -> None:
    reports = [part for name in ("coldstart", "fetch") for part in ("--measured", RESULTS / f"{name}.json")]
    told = json.loads(run(directory, "--recovery-time", 60, *reports, "--json").stdout)
    assert told["fixed_seconds"]["value"] == pytest.approx(32.43, abs=0.01)
    assert told["gb_per_s"]["origin"]["value"] == pytest.approx(1.531, abs=1e-3)


def test_a_running_server_is_asked_for_its_last_start_as_a_client(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_STACK_API_KEY", "client")
    monkeypatch.setenv("RAG_STACK_ADMIN_KEY", "operator")
    keys = []

    async def model(request: Request) -> JSONResponse:
        keys.append(request.headers["authorization"])
        moved = {"kind": "models", "source": "object_store", "size_bytes": 9 * MB, "seconds": 1.0}
        stages = [{"name": "import vLLM", "critical_seconds": 7.0}, {"name": "fetch words", **moved}]
        return JSONResponse({"id": "words", "load": {"stages": stages, "unnamed_seconds": 1.0}})

    with serve(Starlette(routes=[Route("/v1/models/words", model)])) as url:
        told = json.loads(run(directory, "--recovery-time", 60, "--server", url, "--json").stdout)
    assert told["fixed_seconds"] == {"value": 8.0, "basis": "measured", "where": url}
    assert told["gb_per_s"]["origin"]["value"] == pytest.approx(0.009)
    assert keys == ["Bearer client"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "origin"), "--rate 'origin': expected NAME=NUMBER"),
        (("--seconds", "pod=soon"), "--seconds 'pod=soon': expected NAME=NUMBER"),
        (("--survive", "region"), "--survive 'region': expected one of pod, node, zone"),
        (("--measured", "no.json"), "'no.json' cannot be read as JSON"),
        (("--measured", RESULTS / "kill.json"), "says nothing of a start"),
    ],
)
def test_what_cannot_be_meant_is_one_line(directory: Path, options: tuple[Any, ...], message: str) -> None:
    start_once(directory)
    result = run(directory, "--recovery-time", 60, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
