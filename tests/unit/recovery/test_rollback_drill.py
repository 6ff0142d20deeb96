"""The rollback drill on a copy: real followers of a real coordinator, and searches all the while."""

from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.errors import ArtifactCorruptError, RollbackError, UnavailableError
from rag_stack.recovery.rollback_drill import drill_rollback
from tests.promoted import publish_town
from tests.s3 import damage

LIMIT_S = 60.0
POLL_S = 0.05


def test_it_goes_back_and_forward_and_touches_nothing(catalog: Catalog, tmp_path: Path) -> None:
    before = catalog.state("indexes", "docs")
    found = drill_rollback(catalog, "docs", tmp_path / "scratch", limit_s=LIMIT_S, poll_s=POLL_S)
    assert (found.old, found.new, found.problems) == ("v1", "v2", ())
    assert found.promote_seconds is not None
    assert 0 < found.rollback_seconds < LIMIT_S
    assert 0 < found.forward_seconds < LIMIT_S
    assert found.searches > 10
    assert catalog.state("indexes", "docs") == before
    assert "v2 -> v1 in" in found.figure()
    assert found.to_json()["failed"] == 0


@pytest.mark.parametrize("name", ["none", "single"])
def test_one_version_is_no_way_back(catalog: Catalog, tmp_path: Path, name: str) -> None:
    if name == "single":
        catalog.withdraw("indexes", "docs")
        catalog.promote(catalog.resolve("indexes", "docs", "v2").ref)
    with pytest.raises(RollbackError, match="needs two versions"):
        drill_rollback(catalog, "docs" if name == "single" else name, tmp_path / "scratch", limit_s=1.0)


def test_a_version_of_another_embedder_is_no_way_back(catalog: Catalog, tmp_path: Path) -> None:
    publish_town(catalog, tmp_path / "other", "v3", embedder=catalog.resolve("models", "generator"))
    with pytest.raises(RollbackError, match="different embedders"):
        drill_rollback(catalog, "docs", tmp_path / "scratch", limit_s=1.0)


def test_a_damaged_version_before_is_found_by_the_drill(catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "store/indexes/docs/v1/index.faiss"
    file.chmod(0o644)
    damage(file, offset=100)
    with pytest.raises(ArtifactCorruptError, match=r"index\.faiss"):
        drill_rollback(catalog, "docs", tmp_path / "scratch", limit_s=LIMIT_S, poll_s=POLL_S)


def test_what_takes_longer_than_it_may_says_so(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="--limit-s"):
        drill_rollback(catalog, "docs", tmp_path / "scratch", limit_s=0.5, poll_s=30.0)
