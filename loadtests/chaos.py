"""Faults of every kind, one after another, under steady load: `python -m loadtests.chaos --minutes N --seed S`.

A cluster of two raylets on this machine serves two replicas with a scripted engine; all else is as it is served, its
artifacts come from an S3 server. The schedule is a function of the seed. Checked all the while and at the end: clients
that retry as the official one does get every answer, except a stream whose process was killed, which says so; every
answer is from one promoted version; what is in the caches is verified; nothing is left behind.

Every fault and every violation is a line of the log, with its time. Exit code 0: goals met; 1: one is missed; 3: not
measured.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from loadtests import report
from loadtests.chaos_data import STORE, VERSIONS, published
from loadtests.chaos_faults import SkippedError, Striker, running, settled
from loadtests.chaos_figures import Run, build_report, draw
from loadtests.chaos_load import Load
from loadtests.chaos_processes import Processes, pinned_in, shared_memory
from loadtests.chaos_schedule import Fault, schedule
from loadtests.chaos_verdict import Held, Promoted, of_answers, of_what_is_held
from loadtests.local_cluster import LocalCluster, started
from loadtests.relay import Relay, relay
from loadtests.s3_server import environment, serve_s3
from loadtests.scripted_engine import Script
from loadtests.swap_data import EMBEDDER, INDEX, MODEL
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache, read_manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import ArtifactError, RagStackError

REPLICAS: Final = 2
# A version that is promoted is served by all once the slowest has prepared it; on a machine under load that takes long.
_SWAP_S: Final = 45.0
_WARM_S: Final = 8.0
_SETTLE_S: Final = 150.0
_CALM_S: Final = 10.0


class Log:
    """A line of JSON for each thing that happened, at once; seconds since the run began."""

    def __init__(self, path: Path, *, began_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._began_s = began_s
        path.write_text("", encoding="utf-8")

    def tell(self, what: str, **facts: object) -> None:
        """Write it down, and print it."""
        line = {"at_s": round(time.monotonic() - self._began_s, 2), "what": what, **facts}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(" ".join(f"{key}={value}" for key, value in line.items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    faults = schedule(seed=options.seed, length_s=60 * options.minutes, every_s=options.every_s)
    try:
        run = measure(faults, seed=options.seed, length_s=60 * options.minutes, log=options.log)
    except (RagStackError, OSError, TimeoutError) as exc:
        print(f"not measured: {exc}", file=sys.stderr)
        return 3
    result = build_report(run, seed=options.seed, minutes=options.minutes)
    print("\n".join(report.goal_lines(result)))
    report.write(result, draw(result.samples), directory=options.results)
    return report.exit_code(result)


def measure(faults: Sequence[Fault], *, seed: int, length_s: float, log: Path) -> Run:
    """Start the cluster, let the faults strike, judge. Blocking."""
    with _cluster() as (cluster, catalog, line):
        logging.getLogger("httpx").setLevel(logging.WARNING)
        return asyncio.run(_run(cluster, catalog, line, faults=faults, seed=seed, length_s=length_s, log=log))


async def _run(
    cluster: LocalCluster,
    catalog: Catalog,
    line: Relay,
    *,
    faults: Sequence[Fault],
    seed: int,
    length_s: float,
    log: Path,
) -> Run:
    processes = Processes()
    load = Load(cluster.url, model=MODEL, store=STORE, seed=seed, pause_s=0.6)
    promoted = [Promoted(VERSIONS[0], time.monotonic())]
    striker = Striker(cluster, processes, load, catalog, line, REPLICAS, promoted)
    load.start()
    await asyncio.sleep(_WARM_S)
    before = await asyncio.to_thread(held, cluster, processes, served=served(catalog))
    began_s = time.monotonic()
    told = Log(log, began_s=began_s)
    told.tell("run", seed=seed, length_s=length_s, faults=len(faults))
    run = Run(began_s=began_s)
    for fault in faults:
        await asyncio.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
        await _strike(striker, fault, run, told)
    await asyncio.sleep(max(0.0, began_s + length_s - time.monotonic()))
    short = await _settled(processes, before)
    told.tell("not settled" if short else "settled", replicas=dict(await asyncio.to_thread(running)), short=short)
    await asyncio.sleep(_CALM_S)
    await load.stop()
    after = await asyncio.to_thread(held, cluster, processes, served=served(catalog), verify=True)
    now_s = time.monotonic()
    violations = of_answers(load.asked, run.struck, promoted, swap_s=_SWAP_S)
    violations += of_what_is_held(before, after, at_s=now_s)
    for violation in violations:
        told.tell("violation", rule=violation.rule, seen_s=round(violation.at_s - began_s, 2), detail=violation.detail)
    return replace(run, asked=tuple(load.asked), violations=tuple(violations), ended_s=now_s)


async def _strike(striker: Striker, fault: Fault, run: Run, log: Log) -> None:
    facts = asdict(fault)
    log.tell("fault", **facts)
    try:
        struck = await striker.strike(fault)
    except SkippedError as exc:
        run.skipped.append(fault.name)
        log.tell("skipped", number=fault.number, why=str(exc))
    except Exception as exc:  # what a fault needs may be away because of the one before
        run.skipped.append(fault.name)
        log.tell("skipped", number=fault.number, why=f"{type(exc).__name__}: {exc}"[:300])
    else:
        run.struck.append(struck)
        log.tell("struck", number=fault.number, took_s=round(struck.ended_s - struck.began_s, 2), detail=struck.detail)


async def _settled(processes: Processes, before: Held) -> list[str]:
    """Wait until all replicas serve and there is one of everything again, or for long enough; returns what is short."""
    until_s, short = time.monotonic() + _SETTLE_S, ["all"]
    while time.monotonic() < until_s:
        states = await asyncio.to_thread(running)
        counts = dict.fromkeys(before.footprints, 0)
        for member in await asyncio.to_thread(processes.members):
            counts[member.role] = counts.get(member.role, 0) + 1
        short = [role for role, was in before.footprints.items() if role != "idle" and counts[role] < was.processes]
        if not settled(states, replicas=REPLICAS):
            short.append("replicas")
        if not short:
            break
        await asyncio.sleep(1.0)
    return short


def served(catalog: Catalog) -> frozenset[str]:
    """The digests of what is served now, as the caches' directories are called: each may be pinned on every node."""
    named = (("models", MODEL), ("models", EMBEDDER), ("indexes", INDEX))
    return frozenset(catalog.resolve(kind, name).digest.split(":")[-1] for kind, name in named)


def held(cluster: LocalCluster, processes: Processes, *, served: frozenset[str], verify: bool = False) -> Held:
    """What the cluster holds now, of pins those of what is not served any more. Blocking.

    With `verify`, every cached artifact is read and checked.
    """
    corrupt: list[str] = []
    for cache in cluster.caches if verify else ():
        for directory in (cache / "artifacts").glob("*"):
            try:
                NodeCache(cache).verify(read_manifest(directory))
            except ArtifactError as exc:
                corrupt.append(str(exc))
    return Held(processes.footprints(), shared_memory(), pinned_in(cluster.caches, served=served), tuple(corrupt))


@contextmanager
def _cluster() -> Iterator[tuple[LocalCluster, Catalog, Relay]]:
    """Two nodes with a HAProxy each, their artifacts on an S3 server that a relay makes slow or takes away."""
    with tempfile.TemporaryDirectory(prefix="rag-stack-chaos-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        bucket = directory / "s3" / "bucket"
        bucket.mkdir(parents=True)
        release = published(directory, replicas=REPLICAS, served=bucket, root="s3://bucket/artifacts")
        with serve_s3(directory / "s3") as server, relay(server.url) as line:
            os.environ.update(environment(line.url))
            with started(release, directory, script=Script(), nodes=2, proxies="EveryNode") as cluster:
                # Past the relay: what this program promotes is no part of the faults.
                yield cluster, Catalog(open_store((bucket / "artifacts").as_uri())), line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0)
    add("--seed", type=int, default=1)
    add("--every-s", type=float, default=7.0, help="seconds between faults, about")
    add("--log", type=Path, default=Path("var/chaos.jsonl"), help="where each fault and violation is written down")
    add("--results", type=Path, default=report.RESULTS, help="where chaos.json and chaos.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
