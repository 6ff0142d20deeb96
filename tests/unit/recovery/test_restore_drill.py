"""What comes back from a backup point, and what a drill says of a backup that is not whole."""

import shutil
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.point import Point, PointCanary, Points
from rag_stack.artifacts.promotion import POINTER_PROMOTIONS
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ArtifactError, InvalidRequestError, RollbackError
from rag_stack.recovery.backup import take
from rag_stack.recovery.questions import of_release, of_rollouts
from rag_stack.recovery.reading import read
from rag_stack.recovery.restore_drill import RestoreDrill, drill_restore
from rag_stack.releases.pinned import pin
from rag_stack.releases.rollout import Rollout
from rag_stack.stores.files import Files
from rag_stack.stores.register import Register
from tests.embedder import WordEmbedder
from tests.layer import TOWN, publish_index
from tests.promoted import CANARY, QUESTION, catalog_at, docs, publish_town, publish_weights, release_of, words
from tests.s3 import damage

GOOD = PointCanary(question=QUESTION, index="docs", expect=("lighthouse.txt",), top_k=1)


@pytest.fixture
def point(catalog: Catalog) -> Point:
    return take(catalog, canaries=[GOOD]).point


def drill(catalog: Catalog, point: Point, folder: Path) -> RestoreDrill:
    return drill_restore(catalog, point, catalog_at(f"file://{folder}"), load_with=words)


def test_all_comes_back_as_it_was_and_works(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    fresh = catalog_at(f"file://{tmp_path}/fresh")
    found = drill_restore(catalog, point, fresh, load_with=words)
    assert found.problems == ()
    assert found.verified is not None
    # The question given, and the release's own.
    assert (found.verified.passed, len(found.verified.opened), found.verified.pointers) == (2, 4, 4)
    assert found.verified.weights == 6
    assert found.restored.size_bytes == point.size_bytes
    for pointed in point.pointers:
        then, now = (each.state(pointed.kind, pointed.name)[1] for each in (catalog, fresh))
        assert then == now, "the same bytes, with number and history"
    assert catalog.history("indexes", "docs") == fresh.history("indexes", "docs")
    assert Register(fresh.store).all() == Register(catalog.store).all()
    (file,) = Files(fresh.store).all()
    assert Files(fresh.store).content(file.file_id) == b"Hold the button for ten seconds."
    assert Rollout(fresh, "demo").settle().goal == Rollout(catalog, "demo").settle().goal
    told = found.to_json()
    assert (told["ok"], told["opened"], told["missing"]) == (True, 4, [])
    assert "opened 4/4, canaries 2/2" in found.figure()


def test_the_backup_may_be_mounted_read_only(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    before = catalog.store.entries("")
    assert drill(catalog, point, tmp_path / "fresh").problems == ()
    assert catalog.store.entries("") == before, "nothing is written there, not even a clock"


def test_a_restored_root_goes_on(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    drill(catalog, point, tmp_path / "fresh")
    fresh = catalog_at(f"file://{tmp_path}/fresh")
    embedder = fresh.resolve("models", "words")
    assert fresh.promote(publish_town(fresh, tmp_path / "next", "v3", embedder=embedder).ref).number == 3
    assert fresh.rollback("indexes", "docs").version == "v2"
    with pytest.raises(RollbackError, match="is deleted"):
        # What was not promoted is not in a point.
        fresh.rollback("indexes", "docs")


def test_a_long_history_comes_back_with_its_archive(catalog: Catalog, tmp_path: Path) -> None:
    for number in range(POINTER_PROMOTIONS):
        catalog.promote(docs(f"v{1 + number % 2}"))
    promotions = catalog.history("indexes", "docs")
    assert len(promotions) > POINTER_PROMOTIONS
    found = drill(catalog, take(catalog).point, tmp_path / "fresh")
    assert found.problems == ()
    assert catalog_at(f"file://{tmp_path}/fresh").history("indexes", "docs") == promotions


def test_what_was_promoted_since_is_told(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    publish_town(catalog, tmp_path / "later", "v3", embedder=catalog.resolve("models", "words"))
    publish_weights(catalog, tmp_path / "later", "other")
    found = drill(catalog, point, tmp_path / "fresh")
    assert found.problems == ()
    assert len(found.missing) == 2
    assert "the point has v2" in next(each for each in found.missing if "indexes/docs/v3" in each)
    assert "the point has none" in next(each for each in found.missing if "models/other" in each)


@pytest.mark.parametrize("content", ["notes.txt", "indexes/docs/v2/manifest.json"])
def test_a_root_that_is_not_empty_is_refused(catalog: Catalog, point: Point, tmp_path: Path, content: str) -> None:
    there = tmp_path / "fresh" / content
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    with pytest.raises(InvalidRequestError, match=f"not empty.*{content}"):
        drill(catalog, point, tmp_path / "fresh")
    assert there.read_text() == "mine"


def test_the_root_itself_is_no_fresh_root(catalog: Catalog, point: Point) -> None:
    with pytest.raises(InvalidRequestError, match="not empty"):
        drill_restore(catalog, point, catalog, load_with=words)


def test_a_damaged_file_is_named_and_all_the_rest_is_there(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    file = tmp_path / "store/indexes/docs/v2/passages.arrow"
    file.chmod(0o644)
    damage(file, offset=file.stat().st_size // 2)
    found = drill(catalog, point, tmp_path / "fresh")
    assert any("'passages.arrow'" in each and "indexes/docs/v2" in each for each in found.problems)
    assert any("no artifact 'indexes/docs/v2'" in each for each in found.problems)
    assert any(QUESTION in each for each in found.problems)
    fresh = catalog_at(f"file://{tmp_path}/fresh")
    assert fresh.promoted("indexes", "docs") is None, "nothing is promoted that is not whole"
    assert fresh.promoted("models", "generator") is not None
    assert found.verified is not None
    assert len(found.verified.opened) == 3


def test_a_missing_version_is_told(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store/models/generator")
    found = drill(catalog, point, tmp_path / "fresh")
    assert any("no artifact 'models/generator/" in each for each in found.problems)


def test_another_content_under_the_same_version_is_not_taken(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store/indexes/docs/v2")
    embedder = catalog.resolve("models", "words")
    publish_town(catalog, tmp_path / "again", "v1a", embedder=embedder, promote=False)
    shutil.copytree(tmp_path / "store/indexes/docs/v1", tmp_path / "store/indexes/docs/v2")
    found = drill(catalog, point, tmp_path / "fresh")
    assert any("indexes/docs/v2" in each for each in found.problems)


def test_an_upload_that_was_deleted_is_told(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    (file,) = Files(catalog.store).all()
    Files(catalog.store).delete(file.file_id)
    found = drill(catalog, point, tmp_path / "fresh")
    assert any(f"files/{file.file_id}/content" in each for each in found.problems)


def test_weights_that_are_none_do_not_pass(catalog: Catalog, tmp_path: Path) -> None:
    source = tmp_path / "fake"
    source.mkdir()
    (source / "model.safetensors").write_text("weights")
    catalog.promote(catalog.publish(source, kind="models", name="fake", metadata={}).ref)
    found = drill(catalog, take(catalog).point, tmp_path / "fresh")
    assert [each for each in found.problems if "not safetensors" in each and "models/fake" in each]


@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        (PointCanary(question=QUESTION, index="docs", expect=("bakery.txt",), top_k=1), "does not find 'bakery.txt'"),
        (PointCanary(question=QUESTION, index="gone", expect=("a",)), "'gone' is not open"),
        (PointCanary(question=QUESTION, index="docs", version="v1", expect=("a",)), "in the version 'v1'"),
    ],
)
def test_a_question_that_does_not_find_what_it_should(
    catalog: Catalog, tmp_path: Path, canary: PointCanary, reason: str
) -> None:
    found = drill(catalog, take(catalog, canaries=[canary]).point, tmp_path / "fresh")
    assert len(found.problems) == 1
    assert reason in found.problems[0]
    assert "canaries 1/2" in found.figure()


def test_an_index_whose_embedder_is_not_published_cannot_be_asked(catalog: Catalog, tmp_path: Path) -> None:
    publish_index(catalog, tmp_path / "foreign", TOWN, embedder=WordEmbedder(), name="docs", version="v3")
    catalog.promote(docs("v3"))
    found = drill(catalog, take(catalog, canaries=[GOOD]).point, tmp_path / "fresh")
    assert any("is not in the point, so nobody can search" in each for each in found.problems)


def test_the_embedder_of_an_index_is_in_the_point_though_another_is_promoted(catalog: Catalog, tmp_path: Path) -> None:
    old = catalog.resolve("models", "words")
    publish_weights(catalog, tmp_path / "newer", "words", seed=9)
    point = take(catalog, canaries=[GOOD]).point
    assert old.ref in [each.ref for each in point.artifacts]
    assert drill(catalog, point, tmp_path / "fresh").problems == ()


def test_a_release_that_names_a_version_is_asked_in_that_one(tiers: Tiers, tmp_path: Path) -> None:
    release = release_of(tiers.catalog.store.url, tmp_path / "cache")
    named = release.stores[0].model_copy(update={"version": "v1"})
    (canary,) = of_release(release.model_copy(update={"stores": (named,)}), release.rollout.canaries)
    assert (canary.index, canary.version, canary.expect) == ("docs", "v1", ("lighthouse.txt",))
    (followed,) = of_release(release, release.rollout.canaries)
    assert followed.version is None
    assert of_release(release.model_copy(update={"stores": ()}), release.rollout.canaries) == ()


def test_the_questions_of_a_release_are_kept(tiers: Tiers, tmp_path: Path) -> None:
    found = drill(tiers.catalog, take(tiers.catalog).point, tmp_path / "fresh")
    assert found.problems == ()
    assert found.verified is not None
    assert [each.question for each in found.verified.canaries] == [QUESTION]


def test_those_of_a_release_that_took_over_at_once(tiers: Tiers, tmp_path: Path) -> None:
    other = {"steps": [1.0], "canaries": [{**CANARY, "question": "What burns in Alden?"}]}
    newer = release_of(tiers.catalog.store.url, tmp_path / "cache", prompt={"system": "Be brief."}, rollout=other)
    Rollout(tiers.catalog, "demo").apply(pin(newer, tiers), at_once=True)
    assert [each.question for each in of_rollouts(tiers.catalog, read(tiers.catalog))] == ["What burns in Alden?"]


def test_a_rollout_under_way_is_told_and_what_is_promoted_is_restored(tiers: Tiers, tmp_path: Path) -> None:
    before = Rollout(tiers.catalog, "demo").settle().goal
    newer = release_of(tiers.catalog.store.url, tmp_path / "cache", prompt={"system": "Be brief."})
    Rollout(tiers.catalog, "demo").apply(pin(newer, tiers))
    point = take(tiers.catalog).point
    assert point.rollouts == ("demo",)
    drill(tiers.catalog, point, tmp_path / "fresh")
    plan = Rollout(catalog_at(f"file://{tmp_path}/fresh"), "demo").settle()
    assert (plan.state, plan.goal) == ("steady", before)


def test_a_damaged_pointer_in_the_backup_does_not_stop_the_restore(
    catalog: Catalog, point: Point, tmp_path: Path
) -> None:
    catalog.store.put_bytes("models/words/PROMOTED", b"{")
    found = drill(catalog, point, tmp_path / "fresh")
    assert found.problems == ()
    assert "cannot be told" in found.missing[0]


def test_a_target_without_room_ends_it(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ArtifactError, match="cannot"):
        drill(catalog, point, tmp_path / "file" / "fresh")


def test_a_point_that_is_deleted_is_not_found(catalog: Catalog, point: Point) -> None:
    Points(catalog.store).delete(point.name)
    with pytest.raises(ArtifactError, match="take one with `rag-stack backup point`"):
        Points(catalog.store).get(point.name)


def test_a_point_is_restored_from_a_copy_of_its_root(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    shutil.rmtree(tmp_path / "store")
    copy = catalog_at(f"file://{tmp_path}/copy")
    assert drill(copy, Points(copy.store).last(), tmp_path / "fresh").problems == ()


def test_a_killed_restore_has_promoted_nothing_and_is_refused(catalog: Catalog, point: Point, tmp_path: Path) -> None:
    fresh = catalog_at(f"file://{tmp_path}/fresh")

    def die(line: str) -> None:
        if "releases/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drill_restore(catalog, point, fresh, load_with=words, tell=die)
    assert fresh.versions("models", "generator")
    assert read(fresh).pointers == {}
    with pytest.raises(InvalidRequestError, match="not empty"):
        drill(catalog, point, tmp_path / "fresh")
