"""Stores made over HTTP, with their state and their files on a real S3 server that knows conditional writes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from botocore.config import Config
from botocore.session import get_session
from openai import OpenAI

from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import ConflictError
from rag_stack.stores.register import Register
from rag_stack.stores.store import Attachment
from tests.s3 import use
from tests.seaweed import serve_seaweed
from tests.store_server import serve_stores


def test_stores_and_files_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_seaweed(tmp_path / "seaweed") as s3:
        use(monkeypatch, s3.environment)
        # The server may need a moment after its start.
        config = Config(retries={"mode": "standard", "max_attempts": 10}, request_checksum_calculation="when_required")
        get_session().create_client("s3", config=config).create_bucket(Bucket="stores")
        _race("s3://stores/race")
        _live("s3://stores/live", tmp_path)


def _race(root: str) -> None:
    store_id = Register(open_store(root)).create().store_id

    def attach(writer: int) -> None:
        register = Register(open_store(root))
        for number in range(5):
            asked = [Attachment(file_id=f"{writer}-{number}", filename="a.txt", size_bytes=1)]
            while True:
                try:
                    register.change(store_id, lambda now, asked=asked: now.attached(asked))
                    break
                except ConflictError:
                    continue

    with ThreadPoolExecutor(3) as writers:
        list(writers.map(attach, range(3)))
    assert len(Register(open_store(root)).get(store_id).shown) == 15


def _live(root: str, directory: Path) -> None:
    with serve_stores(root, directory / "one") as server, OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        store = client.vector_stores.create(name="far away").id
        big = b"words of Brel " * 200_000
        file = client.vector_stores.files.upload_and_poll(vector_store_id=store, file=("mill.txt", b"the mill of Brel"))
        upload = client.files.create(file=("big.txt", big), purpose="user_data")
        assert client.files.content(upload.id).read() == big
    with serve_stores(root, directory / "two") as server, OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        assert [each.id for each in client.vector_stores.list()] == [store, "town"]
        (hit,) = client.vector_stores.search(store, query="mill").data
        assert hit.file_id == file.id
        assert client.files.delete(file.id).deleted
        assert client.vector_stores.search(store, query="mill").data == []
        assert client.vector_stores.delete(store).deleted
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.retrieve(store)
        assert [each.id for each in client.files.list()] == [upload.id]
