"""A release's reranker is pinned, kept and checked like its other models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import Tiers
from rag_stack.cli.warm import to_warm
from rag_stack.config import Release
from rag_stack.errors import IncompatibleReleaseError
from rag_stack.recovery.backup import take
from rag_stack.recovery.verification import verify
from rag_stack.releases.compatibility import check_release
from rag_stack.releases.difference import changes
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.published import publish
from rag_stack.releases.storage_plan import release_sizes
from rag_stack.serving.holding import pinned_refs
from rag_stack.serving.rollout.searched_release import searches_alike
from tests.cross_encoder import write_cross_encoder

Pinned = Callable[..., PinnedRelease]
NAMED: dict[str, Any] = {"reranker": {"name": "judge"}}


@pytest.fixture
def judge(catalog: Catalog, tmp_path: Path) -> Manifest:
    source = tmp_path / "judge"
    (source / "onnx").mkdir(parents=True)
    (source / "onnx" / "model.onnx").write_text("a graph")
    manifest = catalog.publish(source, kind="models", name="judge", metadata={"task": "rerank"})
    catalog.promote(manifest.ref)
    return manifest


def test_it_is_pinned_by_digest_and_makes_another_version(pinned: Pinned, judge: Manifest) -> None:
    before, after = pinned(), pinned(**NAMED)
    assert after.release.reranker is not None
    assert (after.release.reranker.version, after.release.reranker.digest) == (judge.version, judge.digest)
    assert before.version != after.version
    assert {each.field for each in changes(before, after)} == {"reranker.name", "reranker.version"}
    assert not searches_alike(before, after)


def test_what_names_it_holds_it(
    catalog: Catalog, tiers: Tiers, fields: dict[str, Any], pinned: Pinned, judge: Manifest
) -> None:
    release = pinned(**NAMED)
    assert judge.ref in pinned_refs(release)
    assert judge.ref in [each.ref for each in to_warm(catalog, (), Release.model_validate(fields | NAMED))]
    assert release_sizes(release.release, catalog).reranker == judge.size_bytes
    catalog.promote(publish(catalog, pin(Release.model_validate(fields | NAMED), tiers)).ref)
    catalog.withdraw("models", "judge")
    kept = Retention(catalog, grace_s=0).collect("models", "judge", keep=0, older_than_s=0).kept
    assert [each.ref for each in kept] == [judge.ref]
    assert judge.ref in [each.ref for each in take(catalog).point.artifacts]


def test_another_kind_of_model_is_refused(catalog: Catalog, pinned: Pinned, judge: Manifest) -> None:
    check_release(pinned(**NAMED), catalog)
    with pytest.raises(IncompatibleReleaseError, match="is a model for None, expected one for 'rerank'"):
        check_release(pinned(reranker={"name": "words"}), catalog)


def test_a_reranker_that_was_deleted_is_named(catalog: Catalog, pinned: Pinned, judge: Manifest) -> None:
    release = pinned(**NAMED)
    catalog.store.delete(f"{ArtifactRef('models', 'judge', judge.version)}/onnx/model.onnx")
    with pytest.raises(IncompatibleReleaseError, match=r"model\.onnx.*missing"):
        check_release(release, catalog)


@pytest.mark.parametrize("whole", [True, False])
def test_a_backup_is_verified_by_scoring_with_it(tmp_path: Path, whole: bool) -> None:
    catalog = Catalog(open_store(f"file://{tmp_path}/other"))
    source = write_cross_encoder(tmp_path / "source")
    if not whole:
        (source / "onnx" / "model.onnx").write_text("published so")
    catalog.promote(catalog.publish(source, kind="models", name="judge", metadata={"task": "rerank"}).ref)
    problems = verify(take(catalog).point, catalog).problems
    assert len(problems) == (0 if whole else 1)
    assert all("model.onnx" in problem for problem in problems)
