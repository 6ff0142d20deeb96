"""What a client sees when one process of a cluster is killed, and for how long: `python -m loadtests.chaos_table`.

Two replicas with a scripted engine on two raylets. Before each kill, four streams and four chats are under way; then a
chat, a search and a list of models are asked twice a second, without retries and again as the official client does it.
A line says what failed, how long after the kill the last failed try began, and how long the slowest answer took. The
times are of one machine: a process that is started anew competes with all others for its cores.

What is known, of a machine with far more to do than cores; `before` is with Ray's own settings:

| killed | new requests | under way | who asks again | replaced |
| --- | --- | --- | --- | --- |
| replica | none fail | streams break, chats are answered by another | HAProxy | 11 s |
| HAProxy, one of two | 2 of 117 tries fail, with 503 and Retry-After | its streams break | the client | 12 s |
| HAProxy, the only one | refused until there is another; before: 36 s, then a second of 404 | all break | client | |
| HAProxyManager | as HAProxy, which goes with it; before: 34 s | all break | client | |
| LLMRouter, one of two | none fail | nothing | HAProxy asks the other | 12 s |
| fallback proxy | none fail while replicas run | nothing | | 47 s |
| controller | none fail; nothing is scaled or replaced meanwhile | nothing | | 30 s |
| models; other light ones alike | held by the fallback proxy; before: 500 and time-outs | nothing | HAProxy | 17 s |
| search | held by the fallback proxy until it has opened its indexes, half a minute | nothing | HAProxy | 15 s |
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from loadtests.chaos_client import Asked, Kind, RetryingClient
from loadtests.chaos_processes import Member, Processes

ORDER: Final = (
    "replica", "haproxy", "manager", "router", "proxy", "controller", "search", "models", "admin", "files",
    "agent", "ledger",
)  # fmt: skip
_EVERY_S: Final = 0.5
_UNDER_WAY: Final = 4
_LIMIT_S: Final = 90.0
_CALM_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Line:
    """What one kill did. Failures are counted by what failed, as `chat: ReadError`."""

    component: str
    under_way: dict[str, int]
    failed: dict[str, int]
    gave_up: dict[str, int]
    asked: int
    served_again_s: float
    replaced_s: float | None
    slowest_s: float

    def told(self) -> str:
        """One line for people."""
        replaced = "-" if self.replaced_s is None else f"{self.replaced_s:.1f}"
        return (
            f"{self.component:11} served again {self.served_again_s:5.1f} s, replaced {replaced:>5} s, "
            f"slowest answer {self.slowest_s:.1f} s, "
            f"{sum(self.failed.values())}/{self.asked} failed {self.failed}, gave up {self.gave_up}, "
            f"under way {self.under_way}"
        )


async def line(url: str, processes: Processes, role: str, *, model: str, store: str, long_tokens: int = 100) -> Line:
    """Kill the oldest process of a role under load; what clients saw. Raises LookupError when there is none."""
    victims = processes.members(role)
    if not victims:
        raise LookupError(f"no process is a {role} now: {sorted({m.role for m in processes.members()})}")
    once, official = RetryingClient(url, seed=0, retries=0), RetryingClient(url, seed=0)
    probes = Probes(once, model=model, store=store), Probes(official, model=model, store=store)
    body = chat(model, "how many steps?", max_tokens=long_tokens)
    before = [asyncio.create_task(once.stream("stream", "/v1/chat/completions", body)) for _ in range(_UNDER_WAY)]
    before += [asyncio.create_task(official.ask("chat", "/v1/chat/completions", body)) for _ in range(_UNDER_WAY)]
    await asyncio.sleep(0.7)
    killed_s = time.monotonic()
    processes.kill(victims[0])
    running = [asyncio.create_task(each.run()) for each in probes]
    replaced_s = await _replaced(processes, role, victims[0], len(victims), probes[0], killed_s)
    for each in probes:
        each.stop()
    await asyncio.gather(*running)
    under_way = Counter(f"{each.kind} {each.ending}" for each in await asyncio.gather(*before))
    await asyncio.gather(once.close(), official.close())
    failed = [each for each in probes[0].asked if each.ending != "ok"]
    lost = Counter(f"{each.kind}: {each.detail}" for each in probes[1].asked if each.ending != "ok")
    again_s = max((each.began_s for each in failed), default=killed_s) - killed_s
    counted = Counter(f"{each.kind}: {each.detail[:40]}" for each in failed)
    slowest_s = max((each.ended_s - each.began_s for each in probes[0].asked), default=0.0)
    return Line(role, dict(under_way), dict(counted), dict(lost), len(probes[0].asked), again_s, replaced_s, slowest_s)


class Probes:
    """Asks a chat, a search and the models at a fixed rate until it is stopped."""

    def __init__(self, client: RetryingClient, *, model: str, store: str) -> None:
        self._client = client
        self._chat = chat(model, "who burns the oil?", max_tokens=2)
        self._search = f"/v1/vector_stores/{store}/search"
        self._stopped = asyncio.Event()
        self.asked: list[Asked] = []

    async def run(self) -> None:
        """Until stopped, and until all that was asked is answered."""
        asking: list[asyncio.Task[None]] = []
        kinds: tuple[Kind, ...] = ("chat", "search", "models")
        while not self._stopped.is_set():
            asking += [asyncio.create_task(self._ask(kind)) for kind in kinds]
            await asyncio.sleep(_EVERY_S)
        await asyncio.gather(*asking)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    async def _ask(self, kind: Kind) -> None:
        match kind:
            case "chat":
                asked = await self._client.ask(kind, "/v1/chat/completions", self._chat)
            case "search":
                asked = await self._client.ask(kind, self._search, {"query": "oil", "max_num_results": 2})
            case _:
                asked = await self._client.ask(kind, "/v1/models", None)
        self.asked.append(asked)


def chat(model: str, question: str, *, max_tokens: int) -> dict[str, Any]:
    """A chat's body."""
    return {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}


async def _replaced(
    processes: Processes, role: str, victim: Member, count: int, probes: Probes, killed_s: float
) -> float | None:
    """Wait until there are as many as before and nothing has failed for a while; when the replacement ran."""
    replaced_s: float | None = None
    while (now_s := time.monotonic()) - killed_s < _LIMIT_S:
        others = [each for each in await asyncio.to_thread(processes.members, role) if each != victim]
        if replaced_s is None and len(others) >= count:
            replaced_s = now_s - killed_s
        bad_s = max((each.ended_s for each in probes.asked if each.ending != "ok"), default=killed_s)
        if replaced_s is not None and now_s - max(bad_s, killed_s) > _CALM_S:
            break
        await asyncio.sleep(0.25)
    return replaced_s


def measure(cluster: Any, roles: Sequence[str], *, model: str, store: str, tell: Callable[[str], None]) -> list[Line]:  # noqa: ANN401
    """One line a role, on a cluster that runs (`local_cluster.LocalCluster`)."""
    processes = Processes()
    lines = []
    for role in roles:
        try:
            lines.append(asyncio.run(line(cluster.url, processes, role, model=model, store=store)))
        except LookupError as exc:
            tell(str(exc))
            continue
        tell(lines[-1].told())
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the lines as JSON where told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", nargs="*", default=list(ORDER), help="what is killed, in this order")
    parser.add_argument("--json", type=Path, help="where the lines go, besides the terminal")
    options = parser.parse_args(arguments)
    from loadtests.chaos_data import STORE, published
    from loadtests.local_cluster import started
    from loadtests.scripted_engine import Script
    from loadtests.swap_data import MODEL

    with tempfile.TemporaryDirectory(prefix="rag-stack-table-", ignore_cleanup_errors=True) as name:
        release = published(Path(name), replicas=2)
        with started(release, Path(name), script=Script(), nodes=2) as cluster:
            logging.getLogger("httpx").setLevel(logging.WARNING)
            lines = measure(cluster, options.roles, model=MODEL, store=STORE, tell=partial(print, flush=True))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in lines], indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
