"""Which storage overlay brings replicas back in time: seconds and bytes by tier after each loss, from measured stages.

The model is a sum, and errs on the slow side: what a replica waits for before it starts, the fixed part of a measured
start, each tier's bytes at its rate one tier after the other, and the weights from memory into the engine. The whole
burst starts at once, each replica on a node of its own, and no other replica is left to be a peer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rag_stack.artifacts.catalog import Catalog
from rag_stack.config import Release
from rag_stack.releases.storage_overlay import LOSSES, OVERLAYS, Loss, Recovery, Source, StorageOverlay
from rag_stack.releases.storage_rate import StorageRates


@dataclass(frozen=True, slots=True)
class ReleaseSizes:
    """A release's bytes, by its manifests."""

    weights: int
    embedder: int
    indexes: int
    reranker: int = 0

    @property
    def models(self) -> int:
        """Weights, embedder and reranker."""
        return self.weights + self.embedder + self.reranker


@dataclass(frozen=True, slots=True)
class Step:
    """What all replicas together have from a tier, and how long that takes."""

    tier: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One recovery. The steps of a phase go on side by side, the phases one after the other."""

    loss: Loss
    waited_s: float
    fixed_s: float
    phases: tuple[tuple[Step, ...], ...]

    @property
    def seconds(self) -> float:
        """From the loss to the last replica's first token."""
        return self.waited_s + self.fixed_s + sum(max(step.seconds for step in phase) for phase in self.phases)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them."""
        return tuple(step for phase in self.phases for step in phase)


@dataclass(frozen=True, slots=True)
class OverlayPlan:
    """An overlay after each loss. `assumed` names what of its figures nobody has measured or given."""

    overlay: StorageOverlay
    starts: tuple[ColdStart, ...]
    meets: bool
    assumed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoragePlan:
    """All overlays, and the least that meets the target; None where none does."""

    overlays: tuple[OverlayPlan, ...]
    choice: OverlayPlan | None


def release_sizes(release: Release, catalog: Catalog) -> ReleaseSizes:
    """By the manifests of what the release names, or of what is promoted. Blocking. Raises ArtifactError."""
    model = catalog.resolve("models", release.model.name, release.model.version)
    embedder = catalog.resolve("models", release.embedder.name, release.embedder.version)
    indexes = {m.digest: m for s in release.stores for m in [catalog.resolve("indexes", s.index, s.version)]}
    named = release.reranker
    reranker = catalog.resolve("models", named.name, named.version).size_bytes if named else 0
    return ReleaseSizes(model.size_bytes, embedder.size_bytes, sum(m.size_bytes for m in indexes.values()), reranker)


def plan_storage(
    sizes: ReleaseSizes, rates: StorageRates, *, burst: int, recovery_s: float, survive: Loss = "node"
) -> StoragePlan:
    """Whether each overlay has `burst` replicas back in `recovery_s` after every loss up to `survive`."""
    asked = LOSSES[: LOSSES.index(survive) + 1]
    plans = []
    for overlay in OVERLAYS:
        starts = tuple(cold_start(overlay, loss, sizes, rates, burst=burst) for loss in LOSSES)
        counted = [start for start in starts if start.loss in asked]
        meets = all(start.seconds <= recovery_s for start in counted)
        plans.append(OverlayPlan(overlay, starts, meets, _assumed(overlay, counted, rates)))
    fitting = [plan for plan in plans if plan.meets]
    choice = min(fitting, key=lambda plan: (plan.overlay.rank, _slowest(plan, asked)), default=None)
    return StoragePlan(tuple(plans), choice)


def cold_start(
    overlay: StorageOverlay, loss: Loss, sizes: ReleaseSizes, rates: StorageRates, *, burst: int
) -> ColdStart:
    """How `burst` replicas start at once after a loss."""
    recovery = overlay.recovery(loss)
    waited_s = sum(rates.waits[name].value for name in _waits(recovery, loss))
    brought: dict[Source, int] = {}
    for source, size in ((recovery.models, sizes.models), (recovery.indexes, sizes.indexes)):
        brought[source] = brought.get(source, 0) + size
    phases = [phase for source, size in brought.items() if size for phase in _brought(source, size, rates, burst)]
    engine = Step("engine", burst * sizes.weights, rates.seconds("engine", sizes.weights))
    return ColdStart(loss, waited_s, rates.fixed_s.value, (*phases, (engine,)))


def _brought(source: Source, size: int, rates: StorageRates, burst: int) -> Sequence[tuple[Step, ...]]:
    """How each replica of a burst comes by the same bytes."""
    match source:
        case "origin" | "shared":
            # Read once for all: each node has its share from there, and the rest from the others meanwhile.
            first = Step(source, size, rates.seconds(source, size))
            passed = size * (burst - 1)
            peers = Step("peer", passed, rates.seconds("peer", passed / burst))
            return [(first, peers) if burst > 1 else (first,)]
        case "volume":
            return [(Step(source, size * burst, rates.seconds(source, size * burst)),)]
        case "registry":
            pull = Step(source, size * burst, rates.seconds(source, size * burst))
            return [(pull,), *_brought("mirror", size, rates, burst)]
        case "snapshot" | "disk" | "mirror":
            return [(Step(source, size * burst, rates.seconds(source, size)),)]


def _waits(recovery: Recovery, loss: Loss) -> tuple[str, ...]:
    attach = ("attach",) if recovery.attaches else ()
    return ("pod", *attach) if loss == "pod" else ("pod", *attach, "node")


def _assumed(overlay: StorageOverlay, starts: Sequence[ColdStart], rates: StorageRates) -> tuple[str, ...]:
    tiers = {step.tier for start in starts for step in start.steps}
    waits = {name for start in starts for name in _waits(overlay.recovery(start.loss), start.loss)}
    guessed = [tier for tier in sorted(tiers) if rates.rates[tier].basis == "assumed"]
    return (*guessed, *(name for name in sorted(waits) if rates.waits[name].basis == "assumed"))


def _slowest(plan: OverlayPlan, asked: Sequence[Loss]) -> float:
    return max(start.seconds for start in plan.starts if start.loss in asked)
