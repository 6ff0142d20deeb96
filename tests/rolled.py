"""A rollout in a process that may be killed. Apart from the test, whose imports take seconds."""

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.progress import Evidence, Seen
from rag_stack.releases.rollout import Rollout
from tests.killed import Place

READY = Seen(replicas=1, ready=1)
# What is seen until the new version is promoted and the old one gone.
THROUGH = (*(Evidence(now_s=2.0 + n, old=READY, new=READY) for n in range(3)), Evidence(now_s=9.0, new=READY))


def carry_out(place: Place, release: PinnedRelease) -> None:
    """A rollout to its end, and back again."""
    rollout = Rollout(Catalog(open_store(place.store_url)), "demo", clock=lambda: 1.0)
    rollout.apply(release, replacing=True, reason="newer")
    for evidence in THROUGH:
        rollout.advance(evidence)
    rollout.rollback(reason="worse")
