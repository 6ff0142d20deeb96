"""The cluster's head process (GCS) dies and comes back, its state on a disk: `python -m loadtests.head_loss`.

Ray 2.60 keeps the state of its head in RocksDB beside Redis: RAY_gcs_storage=rocksdb and RAY_gcs_storage_path, a folder
that a successor finds again (a persistent volume). The head is killed with SIGKILL under load, is away for
`--away-s`, and is started again at the same address. While it is away a replica's process is killed, which nobody can
replace; afterwards it must be. Told: what clients saw, which processes of the cluster outlived it, and how long after
the return all replicas served again. The rest of a head machine (HAProxy, controller, fallback proxy) is not killed
here: `loadtests.chaos_table` does that, one by one.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.chaos_client import RetryingClient
from loadtests.chaos_data import STORE, published
from loadtests.chaos_faults import running, settled
from loadtests.chaos_processes import Member, Processes
from loadtests.chaos_table import Probes
from loadtests.local_cluster import LocalCluster, started
from loadtests.scripted_engine import Script
from loadtests.swap_data import MODEL
from rag_stack.serving.environment import free_port

REPLICAS: Final = 2
_LIMIT_S: Final = 180.0
_CALM_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened. `gone` are roles of processes that did not outlive the head's absence, besides the killed one."""

    away_s: float
    asked: int
    failed_tries: dict[str, int]
    gave_up: dict[str, int]
    gone: dict[str, int]
    whole_again_s: float | None


def lose_head(cluster: LocalCluster, *, away_s: float, kill_replica: bool) -> Outcome:
    """Kill the head's GCS, wait, start it again, and wait for all replicas. Blocking."""
    return asyncio.run(_lose(cluster, away_s=away_s, kill_replica=kill_replica))


async def _lose(cluster: LocalCluster, *, away_s: float, kill_replica: bool) -> Outcome:
    processes = Processes()
    once, official = RetryingClient(cluster.url, seed=0, retries=0), RetryingClient(cluster.url, seed=0)
    probes = [Probes(client, model=MODEL, store=STORE) for client in (once, official)]
    asking = [asyncio.create_task(each.run()) for each in probes]
    before = set(processes.members())
    head = cluster.nodes[0]
    # The process that Ray's own handle of the node started: SIGKILL, and then reaped.
    await asyncio.to_thread(head.kill_gcs_server)
    victim = processes.members("replica")[0] if kill_replica else None
    if victim is not None:
        processes.kill(victim)
    await asyncio.sleep(away_s)
    await asyncio.to_thread(head.start_gcs_server)
    back_s = time.monotonic()
    whole_s = await _whole(processes, victim, until_s=back_s + _LIMIT_S)
    await asyncio.sleep(_CALM_S)
    for each in probes:
        each.stop()
    await asyncio.gather(*asking, return_exceptions=False)
    await asyncio.gather(once.close(), official.close())
    gone = before - set(processes.members()) - ({victim} if victim else set())
    failed, gave_up = (
        Counter(f"{each.kind}: {each.detail[:60]}" for each in probe.asked if each.ending != "ok") for probe in probes
    )
    whole_again_s = whole_s - back_s if whole_s else None
    roles = Counter(member.role for member in gone if member.role not in ("gcs", "idle", "other"))
    return Outcome(away_s, len(probes[0].asked), dict(failed), dict(gave_up), dict(roles), whole_again_s)


async def _whole(processes: Processes, victim: Member | None, *, until_s: float) -> float | None:
    """When all replicas served, with another in the place of the victim; None when they did not in time."""
    while time.monotonic() < until_s:
        there = [each for each in processes.members("replica") if each != victim]
        if len(there) >= REPLICAS and settled(await asyncio.to_thread(running), replicas=REPLICAS):
            return time.monotonic()
        await asyncio.sleep(0.5)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, and print what happened. Exit code 0 when no retrying client gave up and all replicas came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--away-s", type=float, default=15.0)
    parser.add_argument("--no-replica", action="store_true", help="leave the replicas alive")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rag-stack-head-", ignore_cleanup_errors=True) as name:
        release = published(Path(name), replicas=REPLICAS)
        storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(Path(name) / "gcs")}
        port = {"gcs_server_port": free_port()}
        with started(release, Path(name), script=Script(), nodes=2, variables=storage, head_settings=port) as cluster:
            logging.getLogger("httpx").setLevel(logging.WARNING)
            outcome = lose_head(cluster, away_s=options.away_s, kill_replica=not options.no_replica)
    print(outcome)
    return 0 if not outcome.gave_up and outcome.whole_again_s is not None else 1


if __name__ == "__main__":
    sys.exit(main())
