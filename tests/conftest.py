"""What every test may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
from starlette.applications import Starlette

from loadtests.s3_server import S3Server, serve_s3
from tests.engine import build_engine
from tests.s3 import use
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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server over a directory, for all tests of a run; take a `bucket` each."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty bucket, as the directory in which the server keeps it; `s3://{bucket.name}` reaches it from here."""
    use(monkeypatch, s3_server.environment)
    directory = s3_server.directory / uuid4().hex
    directory.mkdir()
    return directory
