"""Figures from reports: the load tests' own files, as they are kept in this repository."""

import json
from pathlib import Path
from typing import Any

import pytest

from rag_stack.errors import ConfigError
from rag_stack.releases.measured_start import MeasuredStart, Move
from rag_stack.releases.measurement import Measurement, of_document, of_starts

RESULTS = Path(__file__).parents[3] / "loadtests" / "results"


def report(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_a_recorded_cold_start_tells_what_does_not_depend_on_bytes() -> None:
    measurement = of_document(report("coldstart"), where="r")
    cached = report("coldstart")["arms"]["cached"]
    moving = cached["waited_s worker: load weights"] + cached["waited_s replica: read weights ahead"]
    fetched = sum(cached[f"waited_s replica: fetch {name}"] for name in ("smollm2-135m-instruct", "python"))
    assert measurement.fixed_s == pytest.approx(cached["replica_s"] - moving - fetched)
    assert measurement.gb_per_s("origin") is None


def test_recorded_fetches_tell_the_rates() -> None:
    assert of_document(report("fetch"), where="r").gb_per_s("origin") == pytest.approx(1.531, abs=1e-3)
    weights = of_document(report("weights"), where="r")
    assert weights.gb_per_s("engine") == pytest.approx(5.715, abs=1e-3)
    assert weights.gb_per_s("disk") == pytest.approx(3.337, abs=1e-3)


def test_recorded_peers_tell_what_each_of_the_most_nodes_had_from_them() -> None:
    measurement = of_document(report("fanin"), where="r")
    most = report("fanin")["arms"]["4 x 1"]
    assert measurement.gb_per_s("peer") == pytest.approx(most["peer_bytes"] / 4 / most["seconds"] / 1e9)
    assert measurement.gb_per_s("origin") == pytest.approx(1.491, abs=1e-3)
    assert "one machine" in measurement.where


def test_a_models_card_and_its_load_say_the_same() -> None:
    load = {"stages": [{"name": "import", "critical_seconds": 2.0}], "unnamed_seconds": 1.0}
    assert of_document({"id": "m", "load": load}, where="s") == of_document(load, where="s") == Measurement("s", 3.0)


@pytest.mark.parametrize("document", [{}, {"name": "kill", "arms": {}}, {"name": "fetch", "arms": {}}, {"load": {}}])
def test_another_document_is_refused_by_what_was_expected(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"there\.json .*a report of loadtests\.coldstart"):
        of_document(document, where="there.json")


def test_several_starts_are_one_measurement() -> None:
    starts = [MeasuredStart(s, (Move("origin", 10**9 * n, 1.0),)) for n, s in ((1, 30.0), (2, 10.0), (3, 20.0))]
    measurement = of_starts(starts, where="kept")
    assert measurement is not None
    assert measurement.fixed_s == 20.0
    assert measurement.gb_per_s("origin") == 2.0
    assert of_starts([], where="kept") is None
