"""A node with a replica dies under load, and another takes its place: where its weights and index come from.

`python -m loadtests.node_loss` serves two replicas with a scripted engine on two worker nodes beside the head; the
artifacts (a 270 MB model, an embedder, an index) come from an S3 server through a relay, which counts what is read of
which object. Each round kills a worker with all its processes and its cache, and adds a node with an empty one; the
clock runs until the new replica answers, and beside it from the start report, what its artifacts took. Arms: with and
without the peers tier, from a store at full speed and from one of `--store-mbps` and `--store-ms`. All nodes share this
machine's cores and memory: a neighbour costs CPU that the network of a real cluster would not, and the store at full
speed is nearer than any real one. So both are shown, and the goal is on the limited store.

Exit code 0: goals met; 1: one is missed; 3: not measured.
"""

import argparse
import asyncio
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from loadtests import report
from loadtests.chaos_data import STORE, published
from loadtests.chaos_faults import running, settled
from loadtests.chaos_load import Load
from loadtests.local_cluster import LocalCluster, started
from loadtests.relay import Relay, relay
from loadtests.s3_server import environment, serve_s3
from loadtests.scripted_engine import Script
from loadtests.swap_data import MODEL
from rag_stack.errors import RagStackError

REPLICAS: Final = 2
# A node of one holds one replica.
_CPUS: Final = 1.0
_LIMIT_S: Final = 600.0
_WARM_S: Final = 3.0
# What is read to learn what there is: names, digests, pointers. All else is content.
_METADATA: Final = ("/manifest.json", "/PROMOTED", "/leases/", "/pins/", "/stores/", "/files/")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Arm:
    """Whether the new node asks its neighbours, and whether the store is limited."""

    peers: bool
    limited: bool

    @property
    def name(self) -> str:
        """As the report has it."""
        return f"{'neighbour' if self.peers else 'store'}, store {'limited' if self.limited else 'at full speed'}"


ARMS: Final = (Arm(True, True), Arm(False, True), Arm(True, False), Arm(False, False))


@dataclass(frozen=True, slots=True)
class Loss:
    """One round. `artifacts_s` are the fetches of the new replica's start; `capacity_s` from the kill on."""

    round: int
    arm: str
    content_bytes: int
    metadata_bytes: int
    artifacts_s: float
    start_s: float
    capacity_s: float
    requests: int
    failed_tries: int
    gave_up: int
    broken_streams: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        losses = measure(rounds=1 if options.quick else options.rounds, mbps=options.store_mbps, ms=options.store_ms)
    except (RagStackError, OSError, TimeoutError) as exc:
        print(f"not measured: {exc!r}", file=sys.stderr)
        return 3
    result = build_report(losses, mbps=options.store_mbps, ms=options.store_ms)
    for arm, figures in result.arms.items():
        print(arm, {key: value for key, value in figures.items() if not isinstance(value, list)})
    print("\n".join(report.goal_lines(result)))
    report.write(result, draw(losses), directory=options.results)
    return report.exit_code(result)


def measure(*, rounds: int, mbps: float, ms: float) -> list[Loss]:
    """All rounds, arms in turn, on one cluster."""
    with _cluster() as (cluster, line):
        logging.getLogger("httpx").setLevel(logging.WARNING)
        losses = []
        for number in range(rounds):
            turn = number % len(ARMS)
            for arm in (*ARMS[turn:], *ARMS[:turn]):
                limit = (mbps * 1e6, ms / 1e3) if arm.limited else (None, 0.0)
                line.limit(limit[0], latency_s=limit[1])
                losses.append(asyncio.run(_lose(cluster, line, arm, number)))
                print(losses[-1], flush=True)
        return losses


async def _lose(cluster: LocalCluster, line: Relay, arm: Arm, number: int) -> Loss:
    """Kill the worker that has been there longest, add a node, wait for full capacity, all under load."""
    load = Load(cluster.url, model=MODEL, store=STORE, seed=number, pause_s=0.5)
    load.start()
    await asyncio.sleep(_WARM_S)
    victim, cache = cluster.nodes[1], cluster.cache_of(cluster.nodes[1])
    before, killed_s, killed_at_s = line.sent_by_path(), time.monotonic(), time.time()
    await asyncio.to_thread(cluster.kill, victim)
    await asyncio.to_thread(shutil.rmtree, cache, ignore_errors=True)
    from loadtests.scripted_server import NO_PEERS

    environment = {} if arm.peers else {NO_PEERS: "1"}
    await asyncio.to_thread(lambda: cluster.grow(environment=environment))
    start = await _new_start(killed_at_s, until_s=killed_s + _LIMIT_S)
    capacity_s = time.monotonic() - killed_s
    await load.stop()
    content, metadata = read_since(before, line.sent_by_path())
    fetches = [span for span in start["spans"] if str(span["name"]).startswith("fetch ")]
    asked = load.asked
    return Loss(
        round=number,
        arm=arm.name,
        content_bytes=content,
        metadata_bytes=metadata,
        artifacts_s=sum(float(span["end_s"]) - float(span["start_s"]) for span in fetches),
        start_s=float(start["ready_s"]) - float(start["started_s"]),
        capacity_s=capacity_s,
        requests=len(asked),
        failed_tries=sum(len(each.failures) for each in asked),
        gave_up=sum(1 for each in asked if each.ending == "gave up"),
        broken_streams=sum(1 for each in asked if each.ending in ("broken", "error frame")),
    )


async def _new_start(killed_at_s: float, *, until_s: float) -> Mapping[str, Any]:
    """Wait until all replicas serve, and return the start report of the one that is new. Raises TimeoutError."""
    from ray import serve

    from rag_stack.serving.control import ENGINE_APP

    def report_of_one() -> Mapping[str, Any]:
        answer: Mapping[str, Any] = serve.get_app_handle(ENGINE_APP).start_report.remote().result(timeout_s=20)
        return answer

    while time.monotonic() < until_s:
        if settled(await asyncio.to_thread(running), replicas=REPLICAS):
            try:
                told = await asyncio.to_thread(report_of_one)
            except Exception as exc:  # a call that went to the replica that is no more
                print(f"asked again: {type(exc).__name__}", flush=True)
                continue
            if told["started_s"] > killed_at_s:
                return told
        await asyncio.sleep(0.1)
    raise TimeoutError(f"no new replica within {_LIMIT_S:.0f} s: {dict(running())}")


def read_since(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of content and of metadata that were read of the store meanwhile."""
    content = metadata = 0
    for path, size_bytes in after.items():
        size_bytes -= before.get(path, 0)
        told = path.rstrip("/")
        # A path without an object's name is a listing.
        if any(each in told for each in _METADATA) or told.count("/") < _OBJECT_DEPTH:
            metadata += size_bytes
        else:
            content += size_bytes
    return content, metadata


# /bucket/artifacts/models/NAME/VERSION/FILE
_OBJECT_DEPTH: Final = 6


def build_report(losses: Sequence[Loss], *, mbps: float, ms: float) -> report.Report:
    """Medians by arm; the goals on the limited store."""
    arms = {arm.name: _medians([loss for loss in losses if loss.arm == arm.name]) for arm in ARMS}
    from_peers, from_store = arms[ARMS[0].name], arms[ARMS[1].name]
    origin = max((loss.content_bytes for loss in losses if loss.arm in (ARMS[0].name, ARMS[2].name)), default=None)
    return report.Report(
        name="node_loss",
        machine=report.machine(),
        rounds=max((loss.round for loss in losses), default=-1) + 1,
        samples=[asdict(loss) for loss in losses],
        arms={**arms, "store": {"mbps": mbps, "ms": ms}},
        goals={
            "node_loss.origin_bytes": report.Goal(origin, "<= 0"),
            "node_loss.time_vs_reload_from_store": report.Goal(
                _ratio(from_peers["artifacts_s"], from_store["artifacts_s"]), "<= 0.7"
            ),
        },
    )


_FIGURES: Final = (
    "content_bytes", "metadata_bytes", "artifacts_s", "start_s", "capacity_s", "requests", "failed_tries", "gave_up",
    "broken_streams",
)  # fmt: skip


def _medians(losses: Sequence[Loss]) -> dict[str, float]:
    rows = [asdict(loss) for loss in losses]
    return {key: statistics.median(row[key] for row in rows) if rows else float("nan") for key in _FIGURES}


def _ratio(one: float, other: float) -> float | None:
    return one / other if other > 0 else None


def draw(losses: Sequence[Loss]) -> Figure:
    """Seconds by arm: the artifacts alone, and until there is full capacity; dots are rounds."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("artifacts_s", "capacity_s"),
        ("the artifacts of the new replica", "from the kill to full capacity"),
        strict=True,
    ):
        for place, arm in enumerate(ARMS):
            values = [float(asdict(loss)[key]) for loss in losses if loss.arm == arm.name]
            if values:
                axes.barh(place, statistics.median(values), color="#2f5d80" if arm.peers else "#b9b9b9", height=0.6)
                axes.plot(values, [place] * len(values), ".", color="black", markersize=4)
        axes.set_yticks(range(len(ARMS)), [arm.name for arm in ARMS])
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlabel("seconds")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@contextmanager
def _cluster() -> Iterator[tuple[LocalCluster, Relay]]:
    """The head, without a replica of the engine, and two workers with one each."""
    with tempfile.TemporaryDirectory(prefix="rag-stack-loss-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        bucket = directory / "s3" / "bucket"
        bucket.mkdir(parents=True)
        release = published(directory, replicas=REPLICAS, served=bucket, root="s3://bucket/artifacts")
        with serve_s3(directory / "s3") as server, relay(server.url) as line:
            os.environ.update(environment(line.url))
            sizes = {"nodes": 1 + REPLICAS, "num_cpus": _CPUS, "replica_cpus": _CPUS, "head_cpus": 0.0}
            with started(release, directory, script=Script(), **sizes) as cluster:  # type: ignore[arg-type]
                yield cluster, line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.node_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--store-mbps", type=float, default=60.0, help="megabytes a second of the limited store, for all its readers")
    add("--store-ms", type=float, default=15.0, help="latency of each of its answers")
    add("--quick", action="store_true", help="one round, to see that it runs")
    add("--results", type=Path, default=report.RESULTS, help="where node_loss.json and node_loss.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
