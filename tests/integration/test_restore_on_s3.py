"""A backup point on a real S3 server that knows conditional writes: taken there, restored there and to a folder."""

from pathlib import Path

import pytest
from botocore.config import Config
from botocore.session import get_session

from rag_stack.artifacts.point import PointCanary, Points
from rag_stack.artifacts.retention import Retention
from rag_stack.errors import InvalidRequestError
from rag_stack.recovery.backup import take
from rag_stack.recovery.restore_drill import drill_restore
from tests.promoted import QUESTION, catalog_at, docs, fill, words
from tests.s3 import use
from tests.seaweed import serve_seaweed


def test_from_s3_and_to_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_seaweed(tmp_path / "seaweed") as s3:
        use(monkeypatch, s3.environment)
        # The server may need a moment after its start.
        config = Config(retries={"mode": "standard", "max_attempts": 10}, request_checksum_calculation="when_required")
        get_session().create_client("s3", config=config).create_bucket(Bucket="bucket")
        catalog = fill("s3://bucket/live", tmp_path / "work").catalog
        canary = PointCanary(question=QUESTION, index="docs", expect=("lighthouse.txt",))
        point = take(catalog, canaries=[canary]).point
        assert Points(catalog.store).names() == [point.name]
        catalog.withdraw("indexes", "docs")
        kept = Retention(catalog, grace_s=0, leavings_s=0).collect("indexes", "docs", keep=0, older_than_s=0).kept
        assert any(f"in the backup point {point.name}" in each.reasons for each in kept if each.ref == docs("v2"))
        for target in ("s3://bucket/fresh", f"file://{tmp_path}/fresh"):
            found = drill_restore(catalog, point, catalog_at(target), load_with=words)
            assert found.problems == ()
            assert catalog_at(target).resolve("indexes", "docs").ref == docs("v2")
            with pytest.raises(InvalidRequestError, match="not empty"):
                drill_restore(catalog, point, catalog_at(target), load_with=words)
