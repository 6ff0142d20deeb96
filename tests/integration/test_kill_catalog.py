"""SIGKILL at random moments of publishers, promoters and collectors that are at one catalog at the same time."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from botocore.config import Config
from botocore.session import get_session

from loadtests.kill import build_report, kill
from loadtests.kill_catalog import CatalogVictim
from loadtests.s3_server import S3Server
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.promotion import ARCHIVE_PROMOTIONS, POINTER_PROMOTIONS
from rag_stack.artifacts.retention import Retention
from rag_stack.errors import PromotionConflictError, RollbackError
from tests.s3 import use
from tests.seaweed import serve_seaweed

pytestmark = pytest.mark.long

ROUNDS = pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def bucket_url(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, seaweed.environment)
    bucket = f"kill-{uuid4().hex}"
    # The server may need a moment after its start.
    config = Config(retries={"mode": "standard", "max_attempts": 10}, request_checksum_calculation="when_required")
    get_session().create_client("s3", config=config).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/below"


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store that compares and sets."""
    return f"file://{tmp_path}/store" if request.param == "file" else request.getfixturevalue("bucket_url")


@ROUNDS
def test_nothing_is_lost(url: str, tmp_path: Path, rounds: int) -> None:
    victim = CatalogVictim(url, tmp_path, seed=rounds)
    done = kill([victim], count=rounds, seed=rounds)
    assert [(each.damage.lost, each.damage.inconsistent) for each in done] == [((), ())] * rounds
    assert all(each.killed for each in done)
    assert build_report(done, facts={}).arms["catalog"]["promotions"]


def test_on_s3_too_a_history_is_kept_and_a_version_goes(bucket_url: str, tmp_path: Path) -> None:
    catalog = Catalog(open_store(bucket_url))
    retention = Retention(catalog, grace_s=-1)
    (tmp_path / "source").mkdir()
    refs = []
    for number in range(4):
        (tmp_path / "source" / "a").write_text(f"{number}")
        manifest = catalog.publish(tmp_path / "source", kind="indexes", name="docs", metadata={}, version=f"v{number}")
        refs.append(manifest.ref)
    for number in range(POINTER_PROMOTIONS + 1):
        catalog.promote(refs[number % 2], reason=f"{number}")
    history = catalog.history("indexes", "docs")
    assert [each.reason for each in history] == [f"{number}" for number in range(POINTER_PROMOTIONS + 1)]
    assert catalog.store.list_names("indexes/docs/.history") == ["00000001.json"]
    assert len(history) > ARCHIVE_PROMOTIONS
    assert catalog.rollback("indexes", "docs").version == "v1"

    retention.pin("town", [refs[2]])
    collected = retention.collect("indexes", "docs", keep=0, older_than_s=0)
    # Seaweed tells times to the second, and what was written within one is no older than the other.
    assert {each.ref.version: each.reasons for each in collected.verdicts} == {
        "v0": ("what a rollback goes back to",),
        "v1": ("promoted",),
        "v2": ("pinned by release town",),
        "v3": (),
    }
    assert catalog.store.entries("indexes/docs/v3") == []
    with pytest.raises(RollbackError):
        catalog.rollback("indexes", "docs", to="v3")
    with pytest.raises(PromotionConflictError):
        catalog.promote(refs[2], expected_version="v0")
    assert catalog.promote(refs[2], expected_version="v1").number == POINTER_PROMOTIONS + 3
