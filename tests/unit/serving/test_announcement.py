"""What a replica says of its start."""

import asyncio
from typing import Any

import pytest
from ray import serve

from rag_stack.config import Release
from rag_stack.generation.kv_settings import KvCapacity
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.start_history import label_of
from rag_stack.serving.announcement import keep_announcing
from rag_stack.serving.start_report import StartReport


class Models:
    """The handle of the application behind /v1/models: a call of its one method, and what it was given."""

    def __init__(self) -> None:
        self.told: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self.keep_load = self

    async def remote(self, *arguments: object) -> None:
        self.told.set_result(arguments)


async def test_a_start_is_told_with_the_label_of_the_release_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models()
    # Serve itself is what is behind it.
    monkeypatch.setattr(serve, "get_app_handle", lambda _: models)
    release = Release.model_validate({"name": "r", "model": {"name": "rolled-out"}, "embedder": {"name": "e"}})
    report = StartReport(1.0, 3.5, ())
    cache = KvCapacity(1280, 10, 128)
    announcing = asyncio.create_task(keep_announcing(report, MemoryRecorder(), release, kv_cache=cache))
    async with asyncio.timeout(10):
        card = {**report.to_card(), "kv_cache": {"tokens": 1280, "blocks": 10, "block_tokens": 128, "prefixes": True}}
        assert await models.told == ("replica", card, label_of(release))
    announcing.cancel()
