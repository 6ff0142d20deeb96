"""A steady load on search, and on chat where there is an engine: every answer is checked against its index version."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from loadtests.swap_data import is_of

_TIMEOUT = httpx.Timeout(60.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Seconds of the monotonic clock; `problem` is empty for an answer that is right."""

    route: str
    began_s: float
    seconds: float
    version: str
    problem: str = ""
    mixed: bool = False


class Load:
    """Asks at a fixed rate, whether or not the answers come; so a server that stands still is seen by all who wait."""

    def __init__(self, url: str, *, store: str, questions: Sequence[str], rate: float) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT)
        self._store = store
        self._questions = questions
        self._every_s = 1.0 / rate
        self._asking: set[asyncio.Task[None]] = set()
        self.answers: list[Asked] = []
        self._news = asyncio.Event()

    async def search(self) -> None:
        """Searches, until cancelled."""
        due_s, number = time.perf_counter(), 0
        while True:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            self._start(self._search(self._questions[number % len(self._questions)], due_s))
            due_s, number = due_s + self._every_s, number + 1

    async def chat(self, model: str, *, max_tokens: int) -> None:
        """Chats one after another, until cancelled."""
        number = 0
        while True:
            await self._chat(model, self._questions[number % len(self._questions)], max_tokens)
            number += 1

    async def until_served(self, version: str, *, limit_s: float) -> float:
        """When the first answer came, from now on, that names a version. Raises TimeoutError."""
        looked = len(self.answers)
        async with asyncio.timeout(limit_s):
            while True:
                for answer in self.answers[looked:]:
                    if answer.route == "search" and answer.version == version:
                        return answer.began_s + answer.seconds
                looked = len(self.answers)
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        """Wait for the answers that are still on their way."""
        await asyncio.gather(*self._asking)
        await self._client.aclose()

    def _start(self, asking: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(asking)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _search(self, question: str, due_s: float) -> None:
        body = {"query": question, "max_num_results": 5}
        asked = await self._ask("search", f"/v1/vector_stores/{self._store}/search", body, due_s)
        self.answers.append(asked)
        self._news.set()

    async def _chat(self, model: str, question: str, max_tokens: int) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "tools": [{"type": "file_search", "vector_store_ids": [self._store], "max_num_results": 2}],
            "include": ["file_search_call.results"],
        }
        self.answers.append(await self._ask("chat", "/v1/chat/completions", body, time.perf_counter()))

    async def _ask(self, route: str, path: str, body: dict[str, Any], began_s: float) -> Asked:
        try:
            response = await self._client.post(path, json=body)
            seconds = time.perf_counter() - began_s
            if response.status_code != 200:
                return Asked(route, began_s, seconds, "", f"{response.status_code} {response.text[:200]}")
            version, texts = _told(route, response.json())
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as exc:
            return Asked(route, began_s, time.perf_counter() - began_s, "", repr(exc))
        if not version or not texts:
            return Asked(route, began_s, seconds, version, f"no version or no passages: {version!r}, {len(texts)}")
        return Asked(route, began_s, seconds, version, mixed=not all(is_of(text, version) for text in texts))


def _told(route: str, answer: dict[str, Any]) -> tuple[str, list[str]]:
    """The index version that an answer names, and the texts that it was made from."""
    if route == "search":
        return answer["index_version"], [hit["content"][0]["text"] for hit in answer["data"]]
    return answer["rag"]["index_version"], [source["text"] for source in answer["rag"]["sources"]]
