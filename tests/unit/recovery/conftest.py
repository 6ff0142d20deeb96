"""A root in which something of every kind is promoted."""

from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.tiers import Tiers
from tests.promoted import fill


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    return fill(f"file://{tmp_path}/store", tmp_path / "work")


@pytest.fixture
def catalog(tiers: Tiers) -> Catalog:
    return tiers.catalog
