"""`python -m loadtests.weights`: what the weights cost the second actor on a node, and how fast a cold node loads them.

A sharded model with random weights is published to a real S3 server. Two processes with vLLM imported take turns: the
first meets a node without page cache, the second comes after it. Both fill a model by vLLM's own loader.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from loadtests.relay import Relay, relay
from loadtests.report import RESULTS, Goal, Report, Value, column, exit_code, goal_lines, machine, write
from loadtests.s3_server import serve_s3
from loadtests.sharded_model import write_model
from loadtests.weights_copy import device_name
from loadtests.weights_memory import unique_memory_share
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.residency import resident_bytes
from rag_stack.artifacts.tiers import Tiers
from rag_stack.metrics import MemoryRecorder

ARMS: Final = {
    "sequential": "best plain reader, cold",
    "vllm cold": "vLLM's own load, cold",
    "ours cold": "ours, cold page cache",
    "vllm warm": "vLLM's own load, warm",
    "ours second": "ours, second actor",
}
COPIED: Final = "copied"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rounds share; `arms` are names and titles."""

    name: str
    device: str
    arms: Mapping[str, str]
    relay: Relay
    root: str
    cache: Path
    manifest: Manifest
    model: Path


class ActorProcess:
    """A child that runs `loadtests.weights_actor`."""

    def __init__(self, model: Path, device: str, environment: Mapping[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        command = [sys.executable, "-m", "loadtests.weights_actor", str(model), str(port), device]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )
        self._answer()

    def do(self, command: str, **arguments: str | None) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        print(json.dumps({"do": command, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        """Let it finish."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"the actor ended with {self._process.wait()}; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> int:
    """Measure on the CPU."""
    options = parser("weights", __doc__).parse_args()
    if options.quick:
        options.rounds, options.size_mb = 2, 150
    return run("weights", "cpu", ARMS, rounds=options.rounds, size_mb=options.size_mb, results=options.results)


def run(
    name: str, device: str, arms: Mapping[str, str], *, rounds: int, size_mb: int, results: Path, embedder: bool = True
) -> int:
    """Run the rounds, print the goals, write JSON and picture; the exit code.

    `embedder`: also what a further process pays for the demo's, which has nothing to do with a device.
    """
    with _prepared(name, device, arms, size_mb) as (setting, environment), ExitStack() as stack:
        actors = []
        for _ in range(2):
            actor = ActorProcess(setting.model, device, environment)
            stack.callback(actor.end)
            actors.append(actor)
        # What a process does at its first load alone, imports above all, is over before the first round.
        _round(0, setting, actors[0], actors[1])
        samples: list[dict[str, Value]] = []
        for number in range(rounds):
            samples += _round(number, setting, actors[0], actors[1])
        shares = [unique_memory_share() for _ in range(rounds)] if embedder else []
    report = _report(samples, shares, setting, rounds=rounds)
    checksums = {sample["checksum"] for sample in samples if sample["checksum"] is not None}
    for line in (*_table(report, arms), *goal_lines(report)):
        print(line)
    write(report, _figure(report, arms), directory=results)
    return exit_code(report, arms_agree=len(checksums) == 1)


def _round(number: int, setting: Setting, first: ActorProcess, second: ActorProcess) -> list[dict[str, Value]]:
    ours: dict[str, str | None] = {
        "root": setting.root,
        "cache": str(setting.cache),
        "name": setting.manifest.name,
        "version": setting.manifest.version,
        "digest": setting.manifest.digest,
    }
    steps: list[tuple[str, ActorProcess, str, dict[str, str | None]]] = [
        ("sequential", first, "sequential", {"path": str(setting.model)}),
        ("vllm cold", first, "vllm", {"path": str(setting.model)}),
        ("ours cold", first, "ours", ours),
        ("ours second", second, "ours", ours),
        ("vllm warm", second, "vllm", {"path": str(setting.model)}),
    ]
    # The two warm arms change places, so that neither always comes second.
    if number % 2:
        steps[3], steps[4] = steps[4], steps[3]
    if COPIED in setting.arms:
        steps.append((COPIED, second, COPIED, {"path": str(setting.model)}))
    samples: list[dict[str, Value]] = []
    for arm, actor, command, arguments in steps:
        if arm in ("sequential", "vllm cold", "ours cold"):
            _drop(sorted(setting.model.glob("*.safetensors")))
        sent = setting.relay.bytes_sent()
        answer = actor.do(command, **arguments)
        store_bytes = setting.relay.bytes_sent() - sent
        samples.append({"round": number, "arm": arm, **answer, "store_bytes": store_bytes})
        print(f"round {number}  {arm:12} {answer['seconds']:7.3f} s", flush=True)
    return samples


def _drop(paths: Sequence[Path]) -> None:
    """Put files out of the page cache, and make sure of it."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if left := resident_bytes(path):
            raise RuntimeError(f"{left} bytes of {path.name} stayed in the page cache")


@contextmanager
def _prepared(
    name: str, device: str, arms: Mapping[str, str], size_mb: int
) -> Iterator[tuple[Setting, dict[str, str]]]:
    """A model on a running S3 server and in a node cache; `Setting.model` is its directory there."""
    with tempfile.TemporaryDirectory(prefix="rag-stack-weights-") as folder:
        scratch = Path(folder)
        (scratch / "s3" / "bucket").mkdir(parents=True)
        source = write_model(scratch / "source", size_mb=size_mb)
        with serve_s3(scratch / "s3") as server, relay(server.url) as counted:
            os.environ.update({**server.environment, "AWS_ENDPOINT_URL": counted.url})
            environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
            catalog = Catalog(open_store("s3://bucket/root"))
            manifest = catalog.publish(source, kind="models", name="random", metadata={})
            cache = NodeCache(scratch / "cache")
            model = Tiers(catalog, cache, MemoryRecorder()).ensure_local(manifest).path
            cache.wait_synced()
            yield (
                Setting(name, device, arms, counted, "s3://bucket/root", scratch / "cache", manifest, model),
                environment,
            )


def _report(
    samples: Sequence[Mapping[str, Value]], shares: Sequence[float], setting: Setting, *, rounds: int
) -> Report:
    files = [entry for entry in setting.manifest.files if entry.path.endswith(".safetensors")]
    size = sum(entry.size_bytes for entry in files)
    arms: dict[str, dict[str, Value]] = {}
    for arm in setting.arms:
        seconds = column(samples, arm=arm, key="seconds")
        arms[arm] = {
            "seconds": statistics.median(seconds),
            "gb_per_s": size / 1e9 / statistics.median(seconds),
            "best_gb_per_s": size / 1e9 / min(seconds),
            "cpu_s": statistics.median(column(samples, arm=arm, key="cpu_s")),
            "packed_s": statistics.median(column(samples, arm=arm, key="packed_s")),
            "disk_bytes": max(column(samples, arm=arm, key="disk_bytes")),
            "store_bytes": max(column(samples, arm=arm, key="store_bytes")),
        }

    def ratio(one: str, other: str) -> float:
        pairs = zip(column(samples, arm=one, key="seconds"), column(samples, arm=other, key="seconds"), strict=True)
        return statistics.median(first / second for first, second in pairs)

    second_bytes = sum(float(arms["ours second"][key] or 0) for key in ("disk_bytes", "store_bytes"))
    goals = {
        f"{setting.name}.second_actor_bytes": Goal(second_bytes, "<= 0"),
        f"{setting.name}.second_actor_time_ratio": Goal(ratio("ours second", "vllm warm"), "<= 1.1"),
        **({f"{setting.name}.unique_memory_share": Goal(max(shares), "<= 0.05")} if shares else {}),
        f"{setting.name}.cold_vs_disk": Goal(1 / ratio("ours cold", "sequential"), ">= 0.85"),
    }
    about = {**machine(), "device": device_name(setting.device), "model_bytes": size, "shards": len(files)}
    return Report(name=setting.name, machine=about, rounds=rounds, samples=samples, arms=arms, goals=goals)


def _table(report: Report, arms: Mapping[str, str]) -> Iterator[str]:
    yield f"{'arm':26} {'s':>7} {'GB/s':>6} {'CPU s':>7} {'disk MB':>8} {'store B':>8} {'CPU packing s':>14}"
    for arm, title in arms.items():
        row = {key: float(value) for key, value in report.arms[arm].items() if isinstance(value, int | float)}
        yield (
            f"{title:26} {row['seconds']:7.3f} {row['gb_per_s']:6.2f} {row['cpu_s']:7.2f} "
            f"{row['disk_bytes'] / 1e6:8.1f} {row['store_bytes']:8.0f} {row['packed_s']:14.2f}"
        )


def _figure(report: Report, arms: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    names = list(arms)[::-1]
    rates = [float(report.arms[name]["gb_per_s"]) for name in names]  # type: ignore[arg-type]
    bars = axes.barh(
        [arms[name] for name in names], rates, color=["#2a6f97" if "ours" in n else "#adb5bd" for n in names]
    )
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("GB/s until every tensor is in the engine (median)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    return figure


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """What both programs are told."""
    made = argparse.ArgumentParser(prog=f"python -m loadtests.{name}", description=description)
    add = made.add_argument
    add("--rounds", type=int, default=7)
    add("--size-mb", type=int, default=1200)
    add("--quick", action="store_true", help="two rounds of a small model, to see whether it runs")
    add("--results", type=Path, default=RESULTS, help="where the JSON file and the picture go")
    return made


if __name__ == "__main__":
    sys.exit(main())
