"""Steady load of every kind while faults strike: streams, chats, searches, sessions, lists, clients that go away."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final

from loadtests.chaos_client import Asked, Json, RetryingClient
from loadtests.swap_data import is_of

_QUESTIONS: Final = ("who burns the oil?", "how many steps?", "what is in the ledger?", "when is the lamp lit?")
_STREAM_TOKENS: Final = 40
_LEAVE_S: Final = 0.4


class Load:
    """Loops of clients, each of which asks, waits for its answer, pauses, and asks again, until the load is stopped."""

    def __init__(self, url: str, *, model: str, store: str, seed: int, pause_s: float) -> None:
        self._client = RetryingClient(url, seed=seed)
        self._model = model
        self._store = store
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._stopped = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self.asked: list[Asked] = []

    def start(self, *, clients: int = 1) -> None:
        """So many clients of each kind."""
        kinds: Sequence[Callable[[int], Coroutine[Any, Any, Asked]]] = (
            self._stream,
            self._chat,
            self._search,
            self._session,
            self._models,
        )
        self._running = [asyncio.create_task(self._loop(kind, n)) for kind in kinds for n in range(clients)]

    async def leave(self, count: int) -> None:
        """So many clients ask for a stream and go away in the middle of it."""
        self.asked += await asyncio.gather(*(self._leaver() for _ in range(count)))

    async def stop(self) -> None:
        """Ask no more; wait for what is under way."""
        self._stopped.set()
        await asyncio.gather(*self._running)
        await self._client.close()

    async def _loop(self, ask: Callable[[int], Coroutine[Any, Any, Asked]], number: int) -> None:
        while not self._stopped.is_set():
            self.asked.append(await ask(number))
            await asyncio.sleep(self._pause_s * self._random.uniform(0.5, 1.5))

    async def _stream(self, _: int) -> Asked:
        return await self._client.stream("stream", "/v1/chat/completions", self._body(_STREAM_TOKENS))

    async def _leaver(self) -> Asked:
        body = self._body(10 * _STREAM_TOKENS)
        asked = await self._client.stream("leaver", "/v1/chat/completions", body, leave_after_s=_LEAVE_S)
        # What a client has not waited for is no failure of the server's.
        return asked if asked.ending in ("ok", "silent") else replace(asked, ending="left")

    async def _chat(self, _: int) -> Asked:
        tool = {"type": "file_search", "vector_store_ids": [self._store], "max_num_results": 2}
        body = {**self._body(8), "tools": [tool], "include": ["file_search_call.results"]}
        return await self._client.ask("chat", "/v1/chat/completions", body, judge=_mixed_chat)

    async def _search(self, _: int) -> Asked:
        body = {"query": self._random.choice(_QUESTIONS), "max_num_results": 3}
        return await self._client.ask("search", f"/v1/vector_stores/{self._store}/search", body, judge=_mixed_search)

    async def _session(self, number: int) -> Asked:
        headers = {"x-session-id": f"conversation-{number}"}
        return await self._client.ask("session", "/v1/chat/completions", self._body(8), headers=headers)

    async def _models(self, _: int) -> Asked:
        return await self._client.ask("models", "/v1/models", None)

    def _body(self, tokens: int) -> Json:
        # Without a tool the release's default store would be searched, if it had one.
        message = {"role": "user", "content": self._random.choice(_QUESTIONS)}
        return {"model": self._model, "messages": [message], "max_tokens": tokens}


def _mixed_chat(answer: Json) -> str:
    texts = [source["text"] for source in answer["rag"]["sources"]]
    return _mixed(answer["rag"]["index_version"], texts)


def _mixed_search(answer: Json) -> str:
    return _mixed(answer["index_version"], [hit["content"][0]["text"] for hit in answer["data"]])


def _mixed(version: str, texts: Sequence[str]) -> str:
    """What is wrong with an answer that names a version; nothing when its passages are all of that one."""
    if not texts:
        return f"no passages from {version!r}"
    if all(is_of(text, version) for text in texts):
        return ""
    return f"names {version!r}, and has passages that begin with {sorted({text.split()[0] for text in texts})}"
