"""Which canary questions a backup point holds: those of the promoted releases' rollouts, of release files, of specs."""

from collections.abc import Collection, Iterator, Sequence

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.point import PointCanary
from rag_stack.config import Canary, Release
from rag_stack.errors import ArtifactOutdatedError
from rag_stack.index.spec import IndexSpec
from rag_stack.recovery.reading import Reading
from rag_stack.releases.plan import RolloutStore
from rag_stack.releases.published import load


def of_release(
    release: Release, canaries: Sequence[Canary], *, followed: Collection[str] = ()
) -> tuple[PointCanary, ...]:
    """A release's questions, searched as a client would who asks it: in its default store, or else in its first one.

    Of the stores that are `followed`, what is promoted is searched, and of the others the version that it names.
    """
    stores = {store.name: store for store in release.stores}
    name = release.default_store or next(iter(stores), None)
    if name is None:
        return ()
    store = stores[name]
    return tuple(
        PointCanary(
            question=each.question,
            index=store.index,
            version=None if name in followed else store.version,
            store=name,
            expect=each.expect,
            answer_contains=each.answer_contains,
            top_k=release.retrieval.top_k,
        )
        for each in canaries
    )


def of_spec(spec: IndexSpec) -> tuple[PointCanary, ...]:
    """The questions of an index's gates."""
    return tuple(
        PointCanary(question=each.question, index=spec.name, expect=each.expect, top_k=each.top_k)
        for each in spec.gates.canaries
    )


def of_rollouts(catalog: Catalog, reading: Reading) -> Iterator[PointCanary]:
    """The canary questions of the promoted releases, which their plans keep."""
    for (kind, name), state in reading.pointers.items():
        plan = RolloutStore(catalog.store, name).read() if kind == "releases" else None
        if plan is None or state.pointer is None or not plan.rollout.canaries:
            continue
        try:
            pinned = load(catalog, name, state.pointer.version)
        except ArtifactOutdatedError:
            continue  # of another rag_stack: it is kept, and only that one can say where its questions are searched
        yield from of_release(pinned.release, plan.rollout.canaries, followed=pinned.followed)
