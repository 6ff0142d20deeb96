"""What every test may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from starlette.applications import Starlette

from tests.engine import build_engine
from tests.servers import serve

# A contributor's runs look for new counterexamples; CI judges a change by the same examples each time.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


@pytest.fixture
def engine() -> Starlette:
    """A fresh deterministic engine: steer it through `engine.state`."""
    return build_engine()


@pytest.fixture
def engine_url(engine: Starlette) -> Iterator[str]:
    """The engine behind a real server, without our layer: `http://127.0.0.1:PORT`."""
    with serve(engine) as url:
        yield url


@pytest.fixture
def layer_url(engine: Starlette, tmp_path: Path) -> Iterator[str]:
    """The real layer around `engine` behind a real server, with the store "town": `http://127.0.0.1:PORT`."""
    from tests.layer import build_layer  # brings faiss and torch: only for tests that ask

    with serve(build_layer(engine, tmp_path / "stores")) as url:
        yield url
