"""What another start is reckoned from: a card's bytes by tier, and all the rest."""

from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.object_store import open_store
from rag_stack.releases.measured_start import MeasuredStart, Move, measured_start
from rag_stack.releases.start_history import Start, StartHistory, read_history, write_history


def stage(name: str, critical_s: float, **fields: Any) -> dict[str, Any]:
    return {"name": name, "process": "p", "seconds": critical_s, "critical_seconds": critical_s, **fields}


def card() -> dict[str, Any]:
    models, indexes = {"kind": "models"}, {"kind": "indexes"}
    return {
        "seconds": 30.0,
        "unnamed_seconds": 0.5,
        "stages": [
            stage("import vLLM", 10.0),
            stage("fetch m", 4.0, **models, source="object_store", size_bytes=6_000_000_000),
            stage("fetch e", 1.0, **models, source="object_store", size_bytes=1_000_000_000),
            stage("fetch docs", 0.25, **indexes, source="cache"),
            stage("open docs", 0.25, **indexes, source="cache"),
            # Beside the engine's start, so that nothing waited for it.
            stage("prefault docs", 0.0, **indexes, source="disk", size_bytes=10**9) | {"seconds": 2.0},
            stage("load weights", 3.0, **models, source="auto", size_bytes=6_000_000_000),
            stage("first token", 1.0),
        ],
    }


def test_a_card_is_bytes_by_tier_and_the_rest() -> None:
    measured = measured_start(card())
    assert measured.fixed_s == 0.5 + 10.0 + 0.25 + 0.25 + 1.0
    assert measured.moves == (
        Move("disk", 10**9, 2.0),
        Move("engine", 6_000_000_000, 3.0),
        Move("origin", 7_000_000_000, 5.0),
    )


def test_it_is_kept_with_the_start(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    older, newer = Start("a", "cache", 1.0, 40.0), Start("a", "origin", 2.0, 30.0, measured_start(card()))
    write_history(store, "demo", StartHistory().with_start(newer).with_start(older))
    kept = read_history(store, "demo")
    assert kept.starts == (older, newer)
    assert kept.measured("a") == (newer.measured,)
    assert kept.measured("b") == ()


def test_what_an_older_rag_stack_kept_is_read(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    store.put_bytes(
        "starts/demo.json", b'{"starts": [{"label": "a", "tier": "cache", "ready_at": 1.0, "seconds": 2.0}]}'
    )
    assert read_history(store, "demo").starts == (Start("a", "cache", 1.0, 2.0),)


@pytest.mark.parametrize("damage", [b"1", b'{"fixed_s": 1}', b'{"fixed_s": 1, "moves": [{}]}', b'{"moves": []}'])
def test_a_damaged_measure_makes_the_history_begin_anew(tmp_path: Path, damage: bytes) -> None:
    store = open_store(f"file://{tmp_path}")
    start = b'{"starts": [{"label": "a", "tier": "cache", "ready_at": 1, "seconds": 2, "measured": %s}]}' % damage
    store.put_bytes("starts/demo.json", start)
    assert read_history(store, "demo") == StartHistory()


def test_a_start_that_moved_nothing_is_fixed() -> None:
    assert measured_start({"stages": [], "seconds": 3.0, "unnamed_seconds": 3.0}) == MeasuredStart(3.0)
