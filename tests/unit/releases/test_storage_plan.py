"""Seconds and bytes by tier after each loss, reckoned by hand."""

from collections.abc import Mapping
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.config import Release
from rag_stack.errors import ConfigError, NotMeasuredError
from rag_stack.releases.measured_start import Move
from rag_stack.releases.measurement import Measurement
from rag_stack.releases.storage_overlay import OVERLAYS, Loss
from rag_stack.releases.storage_plan import ColdStart, ReleaseSizes, cold_start, plan_storage, release_sizes
from rag_stack.releases.storage_rate import ASSUMED_RATES, ASSUMED_WAITS, StorageRates, storage_rates

GB = 10**9
SIZES = ReleaseSizes(weights=16 * GB, embedder=1 * GB, indexes=3 * GB)
RATES = {
    "origin": 2.0,
    "peer": 1.0,
    "shared": 1.0,
    "volume": 4.0,
    "snapshot": 0.5,
    "registry": 0.5,
    "disk": 4.0,
    "mirror": 4.0,
    "engine": 8.0,
}
WAITS = {"pod": 10.0, "attach": 5.0, "node": 100.0}
MEASURED = [Measurement("here", 30.0)]


def rates(**changes: float) -> StorageRates:
    return storage_rates(MEASURED, rates=RATES | changes, waits=WAITS)


def start(name: str, loss: Loss, *, burst: int = 1) -> ColdStart:
    (overlay,) = (each for each in OVERLAYS if each.name == name)
    return cold_start(overlay, loss, SIZES, rates(), burst=burst)


def told(cold: ColdStart) -> Mapping[str, tuple[float, float]]:
    return {step.tier: (step.size_bytes / GB, step.seconds) for step in cold.steps}


def test_one_replica_reads_the_object_store() -> None:
    cold = start("object-store", "pod")
    assert told(cold) == {"origin": (20, 10.0), "engine": (16, 2.0)}
    assert cold.seconds == 10 + 30 + 10 + 2
    assert start("object-store", "node").seconds == cold.seconds + WAITS["node"]


def test_a_burst_reads_it_once_and_the_peers_pass_it_on() -> None:
    cold = start("object-store", "node", burst=4)
    # Each has a quarter from the store and three from the others: 15 GB at 1 GB/s, beside the store's 10 s.
    assert told(cold) == {"origin": (20, 10.0), "peer": (60, 15.0), "engine": (64, 2.0)}
    assert cold.seconds == 10 + 100 + 30 + 15 + 2


def test_volumes_of_one_pool_share_its_bandwidth_and_restored_ones_do_not() -> None:
    assert told(start("openebs-mayastor + warm-cache", "node", burst=4))["volume"] == (80, 20.0)
    assert told(start("ebs + warm-cache", "node", burst=4))["snapshot"] == (80, 40.0)
    assert told(start("ebs + warm-cache", "node", burst=1))["snapshot"] == (20, 40.0)
    assert start("ebs + warm-cache", "pod").waited_s == 15


def test_an_image_stays_on_its_node_and_every_other_node_pulls_it() -> None:
    assert told(start("image-volume", "pod")) == {"mirror": (17, 4.25), "origin": (3, 1.5), "engine": (16, 2.0)}
    burst = told(start("image-volume", "node", burst=2))
    assert burst["registry"] == (34, 68.0)
    assert burst["mirror"] == (34, 4.25)


def test_a_nodes_cache_outlives_the_pod_and_not_the_node() -> None:
    assert told(start("nvme", "pod", burst=3)) == {"disk": (60, 5.0), "engine": (48, 2.0)}
    assert "origin" in told(start("nvme", "node"))


def test_a_shared_volume_is_an_object_store_with_its_own_rate() -> None:
    assert told(start("portworx", "zone", burst=2)) == {"shared": (20, 20.0), "peer": (20, 10.0), "engine": (32, 2.0)}


def test_a_pool_of_one_zone_is_lost_with_it() -> None:
    assert "origin" in told(start("openebs-mayastor + warm-cache", "zone"))


def choice(*, burst: int, recovery_s: float, survive: Loss = "pod", **changes: float) -> str | None:
    plan = plan_storage(SIZES, rates(**changes), burst=burst, recovery_s=recovery_s, survive=survive)
    return plan.choice.overlay.name if plan.choice else None


def test_the_least_that_meets_is_chosen_and_changes_with_the_burst() -> None:
    # One replica: 52 s from the object store. Four: 57 s, for the peers are slower than it.
    assert choice(burst=1, recovery_s=52) == "object-store"
    # An image that is there: 47.75 s, and 3 GB of index: 1.5 s from the store, 2.25 s from peers.
    assert choice(burst=4, recovery_s=52) == "image-volume"
    # With a node's 100 s and peers at 0.1 GB/s, 150 s for each: snapshots of their own give all in 40 s, whatever
    # the burst; a pool gives 20 GB in 5 s, 80 GB in 20 s, and 320 GB in 80 s.
    assert choice(burst=4, recovery_s=190, survive="node", peer=0.1) == "ebs + warm-cache"
    assert choice(burst=4, recovery_s=170, survive="node", peer=0.1) == "openebs-mayastor + warm-cache"
    assert choice(burst=16, recovery_s=190, survive="node", peer=0.1) == "ebs + warm-cache"
    assert choice(burst=16, recovery_s=170, survive="node", peer=0.1) is None


def test_what_has_to_be_survived_decides() -> None:
    assert choice(burst=1, recovery_s=49, survive="pod") == "image-volume"
    assert choice(burst=1, recovery_s=49, survive="node") is None


def test_what_is_assumed_is_named() -> None:
    measured = [Measurement("here", 30.0, (Move("origin", 2 * GB, 1.0), Move("disk", 3 * GB, 1.0)))]
    known = storage_rates(measured, rates={"peer": 9.0}, waits={"pod": 1.0})
    assert (known.rates["origin"].basis, known.rates["origin"].value) == ("measured", 2.0)
    assert (known.rates["mirror"].value, known.rates["mirror"].where) == (3.0, "here, of the disk")
    assert known.rates["peer"].basis == known.waits["pod"].basis == "given"
    plan = plan_storage(SIZES, known, burst=2, recovery_s=1000)
    assumed = {each.overlay.name: each.assumed for each in plan.overlays}
    assert assumed["object-store"] == ("engine", "node")
    assert assumed["ebs + warm-cache"] == ("engine", "snapshot", "attach", "node")


def test_the_first_measurement_goes_before_the_next() -> None:
    nearest = Measurement("server", None, (Move("origin", GB, 1.0),))
    kept = Measurement("kept", 12.0, (Move("origin", GB, 4.0), Move("peer", GB, 4.0)))
    known = storage_rates([nearest, kept], rates={}, waits={})
    assert (known.fixed_s.value, known.fixed_s.where) == (12.0, "kept")
    assert (known.rates["origin"].where, known.rates["peer"].where) == ("server", "kept")


def test_without_a_measured_start_there_is_no_plan() -> None:
    with pytest.raises(NotMeasuredError, match="start the server once"):
        storage_rates([Measurement("fetch.json", None, (Move("origin", GB, 1.0),))], rates={}, waits={})


@pytest.mark.parametrize(
    ("given", "waits", "message"),
    [
        ({"orgin": 1.0}, {}, "orgin: there is none of that name; expected one of origin, peer"),
        ({"origin": 0.0}, {}, "expected a number above 0"),
        ({"origin": float("nan")}, {}, "expected a number above 0"),
        ({}, {"pod": -1.0}, "expected a number from 0"),
        ({}, {"boot": 1.0}, "expected one of pod, attach, node"),
    ],
)
def test_a_wrong_figure_is_refused(given: dict[str, float], waits: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        storage_rates(MEASURED, rates=given, waits=waits)


def test_every_tier_that_an_overlay_needs_has_a_figure() -> None:
    known = storage_rates(MEASURED, rates={}, waits={})
    plan = plan_storage(SIZES, known, burst=3, recovery_s=0)
    assert {s.tier for each in plan.overlays for cold in each.starts for s in cold.steps} == set(ASSUMED_RATES)
    assert set(known.waits) == set(ASSUMED_WAITS)
    assert plan.choice is None


def test_sizes_are_those_of_the_manifests(catalog: Catalog, fields: dict[str, Any]) -> None:
    twice = [{"name": "a", "index": "docs"}, {"name": "b", "index": "docs", "version": "v1"}]
    sizes = release_sizes(Release.model_validate(fields | {"stores": twice}), catalog)
    index = catalog.resolve("indexes", "docs", "v1")
    assert sizes == ReleaseSizes(len("weights"), len("embedder"), sum(entry.size_bytes for entry in index.files))
