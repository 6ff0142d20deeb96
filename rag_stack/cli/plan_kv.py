"""`rag-stack plan kv`: whether a workload's prefixes fit in the engine's cache, and what an offload would gain."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.artifact import AsJson, Root, artifacts_config
from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.named import named_numbers
from rag_stack.config import Release, load_deployed_release
from rag_stack.errors import ConfigError, UnavailableError
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.kv_metrics import ServedTokens, judge, read_metrics
from rag_stack.releases.kv_plan import KvPlan, KvSizes, Verdict, plan_kv
from rag_stack.releases.kv_rate import ASSUMED, KvRates, kv_rates
from rag_stack.releases.kv_trace import read_trace
from rag_stack.releases.storage_rate import Figure

_GIB: Final = 1024**3
_TIMEOUT_S: Final = 30.0
# vLLM's own, on a GPU and on CPUs.
_BLOCK: Final = 16
_CPU_BLOCK: Final = 128


def kv(
    release: Annotated[Path | None, typer.Argument(metavar="[RELEASE]", help="A release file (YAML).")] = None,
    trace: Annotated[
        list[Path] | None, typer.Option("--trace", help="Requests as JSON lines, a file or directory.")
    ] = None,
    from_metrics: Annotated[
        str | None, typer.Option("--from-metrics", metavar="URL", help="A running server's metrics.")
    ] = None,
    root: Root = None,
    capacity_tokens: Annotated[
        int | None, typer.Option("--capacity-tokens", min=1, help="What fits in one engine's cache.")
    ] = None,
    block_tokens: Annotated[int | None, typer.Option("--block-tokens", min=1, help="vLLM's block_size.")] = None,
    memory_gib: Annotated[float, typer.Option("--memory-gib", min=0, help="Host memory for an offload.")] = 32.0,
    disk_gib: Annotated[float, typer.Option("--disk-gib", min=0, help="Disk behind that memory.")] = 256.0,
    rate: Annotated[
        list[str] | None,
        typer.Option("--rate", help=f"As prefill=9000 (tokens/s), memory=20, disk=2 (GB/s): {', '.join(ASSUMED)}."),
    ] = None,
    *,
    cpu: Annotated[bool, typer.Option("--cpu", help="The engine runs on CPUs, where vLLM offloads nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether the prefixes of a workload fit in the engine's cache, and what offloading them would gain.

    From a trace: the working set, the hit rate by a simulation of vLLM's blocks, the time to a first token with no
    offload, with one to memory and with one to disk, and one recommendation. From metrics alone a coarser answer,
    with a hit rate that is too high where prompts are read ahead during a rerank: the engine counts those twice.
    RAG_STACK_KV_TRACE=DIRECTORY has a server write a trace. Rates that nobody gave or measured are assumed, and named.
    """
    with one_line_failures():
        served = None if from_metrics is None else read_metrics(_fetched(from_metrics))
        if trace:
            chosen = None if release is None else load_deployed_release(release)
            traces = [read_trace(path) for path in traces_of(trace)]
            token_bytes = {} if chosen is None else _token_bytes(chosen, root)
            measured = {**token_bytes, **({"prefill": served.prefill} if served and served.prefill else {})}
            rates = kv_rates(named_numbers(rate or [], option="--rate"), measured=measured, traces=traces)
            block = block_tokens or _block(chosen, served, cpu=cpu)
            capacity = capacity_tokens or _capacity(chosen, served, rates, block)
            sizes = _sizes(capacity, block, rates, memory_gib=memory_gib, disk_gib=disk_gib)
            found = plan_kv(traces, sizes, rates, offloads=not (cpu or _on_cpus(chosen)))
        elif served is None:
            raise ConfigError("give --trace FILE, or --from-metrics URL of a running server")
    if not trace and served is not None:
        verdict = judge(served)
        typer.echo(json.dumps(_coarse_json(served, verdict))) if as_json else _print_coarse(served, verdict)
    elif as_json:
        typer.echo(json.dumps(_to_json(found, sizes, rates)))
    else:
        _print(found, sizes, rates)


def _fetched(url: str) -> str:
    try:
        answer = httpx.get(url, timeout=_TIMEOUT_S, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise UnavailableError(f"no answer from {url}: {exc or type(exc).__name__}; does the server run?") from exc
    if answer.status_code >= 400:
        raise UnavailableError(f"{url} answered {answer.status_code}; `rag-stack serve` prints where its metrics are")
    return answer.text


def _token_bytes(release: Release, root: str | None) -> dict[str, Figure]:
    """By the model's config.json, where it tells."""
    from rag_stack.generation.kv_settings import token_bytes
    from rag_stack.generation.replica_parts import model_config

    tiers = open_tiers(artifacts_config(root, release.artifacts), MemoryRecorder())
    choice = release.model
    model = tiers.resolve("models", choice.name, choice.version, digest=choice.digest)
    kept = token_bytes(model_config(model, tiers), release.engine)
    if kept.value is None:
        typer.echo(
            f"bytes of a token are not known of {choice.name}: {kept.unknown}; give --rate token-bytes=N", err=True
        )
        return {}
    return {"token-bytes": Figure(float(kept.value), "measured", f"config.json of {choice.name}")}


def _block(release: Release | None, served: ServedTokens | None, *, cpu: bool) -> int:
    told = release.engine.get("block_size") if release else None
    if isinstance(told, int) and told > 0:
        return told
    return (served.block_tokens if served else None) or (_CPU_BLOCK if cpu or _on_cpus(release) else _BLOCK)


def _on_cpus(release: Release | None) -> bool:
    """Only a release for CPUs says so: by the variable that nothing else reads."""
    from rag_stack.generation.kv_settings import KV_VARIABLE

    return release is not None and KV_VARIABLE in release.engine_env


def _capacity(release: Release | None, served: ServedTokens | None, rates: KvRates, block: int) -> int:
    """What the server says, else what the release gives to the cache."""
    from rag_stack.generation.kv_settings import KV_VARIABLE

    if served is not None and served.capacity_tokens:
        return served.capacity_tokens
    engine: Mapping[str, Any] = release.engine if release else {}
    if blocks := engine.get("num_gpu_blocks_override"):
        return int(blocks) * block
    gib = release.engine_env.get(KV_VARIABLE, "") if release else ""
    size = int(gib) * _GIB if gib.isdecimal() else int(engine.get("kv_cache_memory_bytes") or 0)
    if size and rates.token_bytes.basis != "assumed":
        return int(size / rates.token_bytes.value)
    raise ConfigError(
        "how many tokens fit is not known: give --capacity-tokens (GET /ready of a server tells, as `kv cache`), "
        "--from-metrics of one that runs, or a release that gives its cache a size"
    )


def _sizes(capacity: int, block: int, rates: KvRates, *, memory_gib: float, disk_gib: float) -> KvSizes:
    # vLLM keeps one block for itself.
    blocks = capacity // block - 1
    if blocks < 1:
        raise ConfigError(f"a cache of {capacity} tokens has no two blocks of {block}")
    behind = [int(gib * _GIB / (rates.token_bytes.value * block)) for gib in (memory_gib, disk_gib)]
    return KvSizes(block, blocks, *behind)


def _print(found: KvPlan, sizes: KvSizes, rates: KvRates) -> None:
    work = found.working_set
    typer.echo(
        f"{found.requests} requests, {found.prompt_tokens:,} tokens of prompts; different prefixes: "
        f"{work.distinct_tokens:,} tokens, asked for again {work.shared_tokens:,}; the cache holds "
        f"{found.capacity_tokens:,} in blocks of {sizes.block_tokens}"
    )
    for field in dataclasses.fields(rates):
        figure: Figure = getattr(rates, field.name)
        basis = f"{figure.basis}: {figure.where}" if figure.where else figure.basis
        typer.echo(f"  {field.name:<12}{figure.value:12,.4g} {_UNITS[field.name]:<9} {basis}")
    curve = ", ".join(f"x{times:g} {share:.1%}" for times, share in sorted(found.curve.items()))
    typer.echo(f"predicted hit rate {found.hit_rate:.1%} (by size: {curve}; without end {found.attainable:.1%})")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("offload", no_wrap=True)
    for name in ("cache", "memory", "disk", "TTFT mean, ms", "median, ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found.strategies:
        shares = (f"{share:.1%}" for share in (each.cached_share, each.memory_share, each.disk_share))
        table.add_row(each.name, *shares, f"{each.ttft_mean_s * 1e3:.0f}", f"{each.ttft_median_s * 1e3:.0f}")
    Console().print(table)
    assumed = f" (if what is assumed holds: {', '.join(rates.assumed)})" if rates.assumed else ""
    typer.echo(f"{found.verdict.choice}: {found.verdict.text}{assumed}")


_UNITS: Final[Mapping[str, str]] = {
    "prefill": "tokens/s",
    "fixed_s": "s",
    "memory": "GB/s",
    "disk": "GB/s",
    "token_bytes": "bytes",
}


def _print_coarse(served: ServedTokens, verdict: Verdict) -> None:
    ttft = "" if served.ttft_s is None else f", mean first token after {served.ttft_s * 1e3:.0f} ms"
    typer.echo(f"{served.engines} engine(s), {served.requests:.0f} requests, hit rate {served.hit_rate:.1%}{ttft}")
    typer.echo("from metrics alone: no working set, and no prediction")
    typer.echo(f"{verdict.choice}: {verdict.text}")


def _to_json(found: KvPlan, sizes: KvSizes, rates: KvRates) -> dict[str, Any]:
    document = dataclasses.asdict(found)
    document["curve"] = {f"{times:g}": share for times, share in found.curve.items()}
    return {**document, "sizes": dataclasses.asdict(sizes), "rates": dataclasses.asdict(rates), "source": "trace"}


def _coarse_json(served: ServedTokens, verdict: Verdict) -> dict[str, Any]:
    return {
        **dataclasses.asdict(served),
        "hit_rate": served.hit_rate,
        "verdict": dataclasses.asdict(verdict),
        "source": "metrics",
    }


def traces_of(paths: Sequence[Path]) -> list[Path]:
    """Files as they are; of a directory, the traces in it."""
    found = [each for path in paths for each in (sorted(path.glob("kv-*.jsonl")) if path.is_dir() else [path])]
    if not found:
        raise ConfigError(f"there is no trace (kv-*.jsonl) in {', '.join(map(str, paths))}")
    return found
