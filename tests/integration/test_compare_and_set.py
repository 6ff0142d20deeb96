"""Writers that race for one pointer, or one version: exactly one wins, on every store that can promise it."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from uuid import uuid4

import pytest
from botocore.config import Config
from botocore.session import get_session

from loadtests.s3_server import S3Server
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import describe_files
from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.errors import ArtifactExistsError
from tests.daemon import program
from tests.race import WRITERS, create, promote, promoted_version, race, read_pointer, replace_pointer
from tests.radosgw import PROGRAMS, serve_radosgw
from tests.s3 import use
from tests.seaweed import serve_seaweed

pytestmark = pytest.mark.long

ROUNDS = 3


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="module")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    missing = [name for name in PROGRAMS if program(name) is None]
    if missing:
        pytest.skip(f"needs Debian's radosgw, ceph-mon and ceph-osd; not installed: {', '.join(missing)}")
    with serve_radosgw(tmp_path_factory.mktemp("radosgw")) as server:
        yield server


@pytest.fixture(params=["file", "seaweed", pytest.param("radosgw", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store that compares and sets."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    server: S3Server = request.getfixturevalue(request.param)
    use(monkeypatch, server.environment)
    bucket = f"race-{uuid4().hex}"
    # The server may need a moment after its start.
    config = Config(retries={"mode": "standard", "max_attempts": 10}, request_checksum_calculation="when_required")
    get_session().create_client("s3", config=config).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/below"


def _source(directory: Path, text: str) -> Path:
    source = directory / f"source-{text}"
    source.mkdir()
    (source / "config.json").write_text(text)
    return source


def _publish(sources: list[Path], store: ObjectStore, writer: int, number: int, _: object) -> str | None:
    try:
        Catalog(store).publish(sources[writer % 2], kind="models", name="m", metadata={}, version=f"v{number}")
    except ArtifactExistsError as exc:
        return exc.message
    return None


def test_a_key_is_created_once(url: str) -> None:
    for won in race(url, create, rounds=ROUNDS):
        assert won.count(True) == 1


def test_a_value_is_replaced_once(url: str) -> None:
    for number, won in enumerate(race(url, replace_pointer, look=read_pointer, rounds=ROUNDS)):
        assert won.count(True) == 1, number
    assert open_store(url).read_bytes("pointer") == f"round {ROUNDS - 1}, writer {won.index(True)}".encode()


def test_a_promotion_is_won_once_and_the_losers_hear_by_whom(url: str, tmp_path: Path) -> None:
    catalog = Catalog(open_store(url))
    source = _source(tmp_path, "same")
    for number, writer in product(range(ROUNDS), range(WRITERS)):
        catalog.publish(source, kind="models", name="m", metadata={}, version=f"v{number}-{writer}")
    for number, messages in enumerate(race(url, promote, look=promoted_version, rounds=ROUNDS)):
        assert messages.count(None) == 1, number
        winner = f"v{number}-{messages.index(None)}"
        assert all(f"'{winner}'" in message for message in messages if message)
    promoted = catalog.promoted("models", "m")
    assert promoted is not None
    assert promoted.version == winner


def test_of_two_contents_of_one_version_one_is_published_whole(url: str, tmp_path: Path) -> None:
    sources = [_source(tmp_path, text) for text in ("first", "second")]
    catalog = Catalog(open_store(url))
    for number, messages in enumerate(race(url, partial(_publish, sources), rounds=ROUNDS)):
        published = catalog.resolve("models", "m", f"v{number}")
        # One content is there, and whoever had it is told so.
        kept = [index for index, source in enumerate(sources) if describe_files(source) == published.files]
        assert [message is None for message in messages] == [[writer % 2] == kept for writer in range(WRITERS)]
        assert all("published with other content" in message for message in messages if message)
        assert (
            catalog.store.read_bytes(f"{published.ref}/config.json") == (sources[kept[0]] / "config.json").read_bytes()
        )
