"""Questions for people who use Locust: streams answers, and reports the time to the first token as an event of its own.

    var/peers/locust/bin/locust -f loadtests/locustfile.py --headless -u 4 -r 4 -t 30s --host http://127.0.0.1:8000

The key is RAG_STACK_API_KEY, the model RAG_STACK_MODEL (default: the first that the server lists); RAG_STACK_MAX_TOKENS
is the length of an answer. Locust's own entry for the POST is the whole answer; beside it are `first token`, and
`token`, the mean time of a token after the first. Each user is one conversation's session, and asks no question twice.
"""

import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from locust import HttpUser, between, task
from locust.exception import CatchResponseError

_CHAT: Final = "/v1/chat/completions"
_QUESTIONS: Final = Path(__file__).with_name("data") / "questions.txt"
_MAX_TOKENS: Final = int(os.environ.get("RAG_STACK_MAX_TOKENS", "64"))
_numbers = itertools.count()


class Asker(HttpUser):
    """Asks, reads the stream to its end, thinks for a moment, asks again."""

    wait_time = between(0.1, 0.5)

    def on_start(self) -> None:
        """Find out what the model is called."""
        number = next(_numbers)
        self._draw = random.Random(number)
        self._questions = [line for line in _QUESTIONS.read_text(encoding="utf-8").splitlines() if line]
        self._asked = itertools.count()
        self.client.headers["x-session-id"] = f"locust-{os.getpid()}-{number}"
        if key := os.environ.get("RAG_STACK_API_KEY"):
            self.client.headers["authorization"] = f"Bearer {key}"
        self._model = os.environ.get("RAG_STACK_MODEL") or self.client.get("/v1/models").json()["data"][0]["id"]

    @task
    def ask(self) -> None:
        """One streamed answer. A stream that ends without [DONE], or with an error frame, is a failure."""
        question = f"{self._draw.choice(self._questions)} (question {next(self._asked) + 1})"
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": _MAX_TOKENS,
            "stream": True,
        }
        began = time.perf_counter()
        with self.client.post(_CHAT, json=body, stream=True, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return
            try:
                arrivals = list(_arrivals(response))
            except CatchResponseError as exc:
                response.failure(exc)
                return
            # Locust takes the time until the headers; the answer ends with its last token.
            response.request_meta["response_time"] = (time.perf_counter() - began) * 1e3
            response.success()
        if arrivals:
            self._tell("first token", (arrivals[0] - began) * 1e3)
        if len(arrivals) > 1:
            self._tell("token", (arrivals[-1] - arrivals[0]) * 1e3 / (len(arrivals) - 1))

    def _tell(self, name: str, milliseconds: float) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=None,
            context=self.context(),
        )


def _arrivals(response: Any) -> Iterator[float]:  # noqa: ANN401 - Locust is not in the type checker's environment
    """When each chunk with text came."""
    for line in response.iter_lines(chunk_size=1):
        if not line.startswith(b"data: "):
            continue
        arrived = time.perf_counter()
        if line == b"data: [DONE]":
            return
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise CatchResponseError(f"error frame: {json.dumps(chunk['error'])[:200]}")
        if any((choice.get("delta") or {}).get("content") for choice in chunk["choices"]):
            yield arrived
    raise CatchResponseError("the stream ended without [DONE]")
