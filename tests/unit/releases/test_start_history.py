"""How long starts took, and how long the next one may take."""

from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.object_store import open_store
from rag_stack.config import Release
from rag_stack.releases.start_history import (
    KEPT,
    Start,
    StartHistory,
    label_of,
    read_history,
    tier_of,
    write_history,
)


def history(*seconds: float, label: str = "a", tier: str = "cache") -> StartHistory:
    kept = StartHistory()
    for number, took_s in enumerate(seconds):
        kept = kept.with_start(Start(label, tier, float(number), took_s))
    return kept


def test_quantiles_are_starts_that_happened() -> None:
    known = history(*range(1, 11)).load_time("a")
    assert known is not None
    assert (known.p50_s, known.p90_s, known.count) == (5, 9, 10)
    single = history(7.0).load_time("a")
    assert single is not None
    assert single.p50_s == single.p90_s == 7.0


def test_the_newest_starts_tier_is_looked_at_unless_told() -> None:
    kept = history(10.0).with_start(Start("a", "origin", 5.0, 100.0))
    newest, cached = kept.load_time("a"), kept.load_time("a", "cache")
    assert newest is not None
    assert cached is not None
    assert (newest.p50_s, cached.p50_s) == (100.0, 10.0)
    assert kept.load_time("a", "peer") is kept.load_time("b") is None


def test_a_start_told_twice_counts_once_and_old_ones_go() -> None:
    kept = history(*range(KEPT + 10))
    assert kept.with_start(kept.starts[-1]) is kept
    assert len(kept.starts) == KEPT
    assert kept.starts[0].seconds == 10
    for number in range(KEPT + 5):
        kept = kept.with_start(Start(f"label-{number}", "cache", 1000.0 + number, 1.0))
    assert len({each.label for each in kept.starts}) == KEPT
    assert kept.load_time("a") is None


def test_it_outlives_who_wrote_it(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    assert read_history(store, "demo") == StartHistory()
    write_history(store, "demo", history(1.0, 2.0))
    assert read_history(store, "demo") == history(1.0, 2.0)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"starts": [{}]}', b'{"starts": [{"label": 1}]}'])
def test_what_cannot_be_read_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    store = open_store(f"file://{tmp_path}")
    store.put_bytes("starts/demo.json", damage)
    assert read_history(store, "demo") == StartHistory()


@pytest.mark.parametrize(
    ("sources", "tier"), [(("cache", "cache"), "cache"), (("peer", "cache"), "peer"), ((), "cache")]
)
def test_the_tier_is_where_the_weights_came_from(sources: tuple[str, ...], tier: str) -> None:
    stages: list[dict[str, Any]] = [{"name": "import"}, {"kind": "indexes", "source": "origin"}]
    assert tier_of({"stages": [*stages, *({"kind": "models", "source": each} for each in sources)]}) == tier


def test_the_label_tells_what_a_start_depends_on() -> None:
    release = Release.model_validate({"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}})
    slower = release.model_copy(update={"engine": {"enforce_eager": False}})
    standby = release.model_copy(update={"wake": release.wake.model_copy(update={"standby": True})})
    prompt = release.model_copy(update={"prompt": release.prompt.model_copy(update={"system": "Other."})})
    assert label_of(release) == label_of(prompt)
    assert len({label_of(each) for each in (release, slower, standby)}) == 3
