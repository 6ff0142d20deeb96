"""The restore drill: how long a restore takes, whether what came back works, and what would be lost.

measured                    how
restore_seconds, GB/s       from the first read of the backup to the last pointer of the fresh root
verify_seconds              every artifact read again, by digest, and opened; every pointer compared; questions asked
rto_seconds                 the two together. Not in it: a cluster, nodes and images; `drill node-loss` has the fetch
opened n/m                  artifacts: safetensors headers, `IndexVersion.open` and a search, a release's content
canaries k/n                questions whose expected document a search in the fresh root finds, in this process
answers k/n                 with a server: questions that it answers with an expected source
rpo_seconds                 age of the point, by this machine's clock; `missing` is what was promoted since
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.point import Point, PointCanary
from rag_stack.client import Client
from rag_stack.errors import ArtifactCorruptError, RagStackError
from rag_stack.recovery.reading import read
from rag_stack.recovery.restore import Restored, restore
from rag_stack.recovery.verification import CanaryOutcome, Load, Verified, load_embedder, verify

_ANSWER_TOKENS = 128


@dataclass(frozen=True, slots=True)
class RestoreDrill:
    """What a drill has measured."""

    point: Point
    target: str
    restored: Restored
    verified: Verified | None
    answers: tuple[CanaryOutcome, ...]
    rpo_seconds: float
    missing: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """All that does not hold; none: the backup is good."""
        wrong = (f"answer to {each.question!r}: {each.detail}" for each in self.answers if not each.passed)
        return (*self.restored.problems, *(self.verified.problems if self.verified else ()), *wrong)

    @property
    def gb_per_s(self) -> float:
        """How fast the restore moved bytes."""
        return self.restored.size_bytes / max(self.restored.seconds, 1e-9) / 1e9

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        verified = self.verified
        return {
            "point": self.point.name,
            "from": self.point.root,
            "to": self.target,
            "ok": not self.problems,
            "restore_seconds": round(self.restored.seconds, 3),
            "verify_seconds": round(verified.seconds, 3) if verified else None,
            "rto_seconds": round(self.restored.seconds + (verified.seconds if verified else 0.0), 3),
            "size_bytes": self.restored.size_bytes,
            "gb_per_s": round(self.gb_per_s, 3),
            "artifacts": len(self.point.artifacts),
            "restored": len(self.restored.artifacts),
            "opened": len(verified.opened) if verified else None,
            "pointers": verified.pointers if verified else self.restored.pointers,
            "weights": verified.weights if verified else None,
            "canaries": [asdict(each) for each in verified.canaries] if verified else [],
            "answers": [asdict(each) for each in self.answers],
            "rpo_seconds": round(self.rpo_seconds, 1),
            "missing": list(self.missing),
            "problems": list(self.problems),
        }

    def figure(self) -> str:
        """The drill in one line."""
        row = self.to_json()
        parts = [f"{self.restored.size_bytes:,} bytes in {self.restored.seconds:.1f} s ({self.gb_per_s:.2f} GB/s)"]
        if self.verified:
            asked = len(self.verified.canaries)
            parts += [f"verified in {self.verified.seconds:.1f} s", f"RTO {row['rto_seconds']:.1f} s"]
            parts += [f"opened {row['opened']}/{row['artifacts']}", f"canaries {self.verified.passed}/{asked}"]
        if self.answers:
            parts.append(f"answers {sum(each.passed for each in self.answers)}/{len(self.answers)}")
        parts.append(f"RPO {self.rpo_seconds:.0f} s, {len(self.missing)} promoted since")
        return f"restore of {self.point.name}: " + ", ".join(parts)


def drill_restore(
    source: Catalog,
    point: Point,
    target: Catalog,
    *,
    verified: bool = True,
    server: str | None = None,
    load_with: Load = load_embedder,
    tell: Callable[[str], None] = lambda _: None,
) -> RestoreDrill:
    """Restore a point into a fresh root, and look whether it holds. Blocking. Raises as `restore`."""
    restored = restore(source, point, target, tell=tell)
    return RestoreDrill(
        point=point,
        target=target.store.url,
        restored=restored,
        verified=verify(point, target, load_with=load_with, tell=tell) if verified else None,
        answers=_answers(point.canaries, server) if server else (),
        rpo_seconds=max(0.0, time.time() - point.at.timestamp()),
        missing=_promoted_since(source, point),
    )


def _promoted_since(source: Catalog, point: Point) -> tuple[str, ...]:
    """What the backup's root has promoted now, and the point has not; in a copy made with the point that is nothing."""
    known = {each.address: each for each in point.pointers}
    found = []
    try:
        pointers = read(source).pointers
    except ArtifactCorruptError as exc:
        # Why a restore is made, perhaps; it does not stop one.
        return (f"what was promoted since cannot be told: {exc.message}",)
    for (kind, name), state in pointers.items():
        then = known.get(f"{kind}/{name}")
        if state.pointer is None or (then is not None and then.number == state.pointer.number):
            continue
        had = f"the point has {then.version}" if then else "the point has none"
        found.append(f"{kind}/{name}/{state.pointer.version}, promoted at {state.pointer.promoted_at}: {had}")
    return tuple(found)


def _answers(canaries: Sequence[PointCanary], server: str) -> tuple[CanaryOutcome, ...]:
    with Client(base_url=server) as client:
        return tuple(_answer(client, canary) for canary in canaries)


def _answer(client: Client, canary: PointCanary) -> CanaryOutcome:
    """As a user asks: whether an expected document is among the sources, and the answer holds what it must."""
    store = canary.store or canary.index
    try:
        answer = client.ask(canary.question, store=store, temperature=0.0, max_tokens=_ANSWER_TOKENS)
    except RagStackError as exc:
        return CanaryOutcome(canary.question, canary.index, passed=False, detail=exc.message)
    found = sorted(
        {name for source in answer.sources for name in (source.filename, source.file_id, source.url) if name}
    )
    if canary.expect and not set(canary.expect) & set(found):
        detail = f"none of {', '.join(canary.expect)} is among the sources: {', '.join(found) or 'there are none'}"
        return CanaryOutcome(canary.question, canary.index, passed=False, detail=detail)
    if canary.answer_contains.casefold() not in answer.text.casefold():
        detail = f"the answer does not hold {canary.answer_contains!r}: {answer.text[:200]!r}"
        return CanaryOutcome(canary.question, canary.index, passed=False, detail=detail)
    return CanaryOutcome(canary.question, canary.index, passed=True, detail=f"{len(answer.sources)} sources")
