"""`rag-stack plan`: which storage brings replicas back in time, and how prefixes fit in the engine's cache."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.admin_calls import AdminCalls
from rag_stack.cli.artifact import AsJson, Root, artifacts_config
from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.named import named_numbers
from rag_stack.cli.plan_kv import kv
from rag_stack.config import Release, load_deployed_release
from rag_stack.errors import ConfigError
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.measurement import Measurement, of_document, of_starts
from rag_stack.releases.pinned import pin
from rag_stack.releases.start_history import StartHistory, label_of, read_history
from rag_stack.releases.storage_overlay import LOSSES, Loss
from rag_stack.releases.storage_plan import (
    ColdStart,
    OverlayPlan,
    ReleaseSizes,
    StoragePlan,
    plan_storage,
    release_sizes,
)
from rag_stack.releases.storage_rate import ASSUMED_RATES, ASSUMED_WAITS, Figure, StorageRates, storage_rates

# As `release apply` ends when what was asked for did not come about.
_NONE_MEETS: Final = 3

app = typer.Typer(help="What a deployment needs, by what was measured.", no_args_is_help=True, add_completion=False)


@app.callback()
def plan() -> None:
    """What a deployment needs, by what was measured."""


app.command()(kv)


@app.command()
def storage(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="A release file (YAML).")],
    recovery_time: Annotated[float, typer.Option("--recovery-time", min=0, help="Seconds from loss to first token.")],
    burst: Annotated[int, typer.Option("--burst", min=1, max=10_000, help="Replicas that start at once.")] = 1,
    survive: Annotated[str, typer.Option("--survive", help=f"The worst loss to recover from: {LOSSES}.")] = "node",
    root: Root = None,
    server: Annotated[str | None, typer.Option("--server", help="Ask a running server for its last start.")] = None,
    measured: Annotated[
        list[Path] | None, typer.Option("--measured", help="A start's card, or a report of loadtests (JSON).")
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option("--rate", help=f"GB/s of a tier, as origin=1.2: {', '.join(ASSUMED_RATES)}.")
    ] = None,
    seconds: Annotated[
        list[str] | None, typer.Option("--seconds", help=f"A wait, as node=180: {', '.join(ASSUMED_WAITS)}.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say which storage overlay has replicas back in time after a loss, with seconds and bytes by tier.

    What a start takes is what was measured: by the server asked, by the reports given, else by the starts that are
    kept beside the artifacts. A rate or wait that nothing measured is assumed, and named as such. Exit code 3: none
    meets the target.
    """
    with one_line_failures():
        worst = _loss(survive)
        chosen = load_deployed_release(release)
        tiers = open_tiers(artifacts_config(root, chosen.artifacts), MemoryRecorder())
        # A start is kept under what was pinned.
        pinned = pin(chosen, tiers).release
        rates = storage_rates(
            _measurements(pinned, tiers.catalog.store, server=server, reports=measured or []),
            rates=named_numbers(rate or [], option="--rate"),
            waits=named_numbers(seconds or [], option="--seconds"),
        )
        sizes = release_sizes(pinned, tiers.catalog)
        found = plan_storage(sizes, rates, burst=burst, recovery_s=recovery_time, survive=worst)
    if as_json:
        typer.echo(json.dumps(_to_json(found, sizes, rates)))
    else:
        _print(found, sizes, rates, burst=burst, recovery_s=recovery_time, survive=worst)
    if found.choice is None:
        raise typer.Exit(_NONE_MEETS)


def _measurements(
    release: Release, store: ObjectStore, *, server: str | None, reports: Sequence[Path]
) -> list[Measurement]:
    """The nearest first: a server's last start, then what was given, then what is kept."""
    found = []
    if server is not None:
        card = AdminCalls(server, as_admin=False).get(f"/v1/models/{release.model.name}")
        if "stages" in card.get("load", {}):
            found.append(of_document(card, where=server))
    found += [of_document(_document(path), where=str(path)) for path in reports]
    kept = _kept(read_history(store, release.name), label_of(release))
    return found if kept is None else [*found, kept]


def _kept(history: StartHistory, label: str) -> Measurement | None:
    """Of these weights and engine settings, else of those that started last, and then it says so."""
    known = [each for each in history.starts if each.measured is not None]
    if not known:
        return None
    newest = max(known, key=lambda each: (each.label == label, each.ready_at)).label
    starts = history.measured(newest)
    other = "" if newest == label else ", of other weights or engine settings"
    return of_starts(starts, where=f"{len(starts)} kept start{'s' if len(starts) > 1 else ''}{other}")


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{str(path)!r} cannot be read as JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{str(path)!r} must hold a JSON object, got {type(document).__name__}")
    return document


def _loss(name: str) -> Loss:
    for loss in LOSSES:
        if loss == name:
            return loss
    raise ConfigError(f"--survive {name!r}: expected one of {', '.join(LOSSES)}")


def _print(
    found: StoragePlan, sizes: ReleaseSizes, rates: StorageRates, *, burst: int, recovery_s: float, survive: Loss
) -> None:
    typer.echo(
        f"weights {sizes.weights:,} bytes, embedder {sizes.embedder:,}, reranker {sizes.reranker:,}, "
        f"indexes {sizes.indexes:,}; "
        f"a start takes {rates.fixed_s.value:.1f} s besides ({rates.fixed_s.where})"
    )
    for name, figure in sorted(rates.rates.items()):
        typer.echo(f"  {name:<9}{figure.value:7.3f} GB/s  {_basis(figure)}")
    for name, figure in sorted(rates.waits.items()):
        typer.echo(f"  {name:<9}{figure.value:7.1f} s     {_basis(figure)}")
    Console().print(_table(found))
    for start in found.choice.starts if found.choice else ():
        typer.echo(f"after the loss of a {start.loss}: {_told(start)}")
    replicas = f"{burst} replica{'s' if burst > 1 else ''} in {recovery_s:g} s after the loss of a {survive}"
    typer.echo(_verdict(found.choice, replicas))


def _verdict(choice: OverlayPlan | None, replicas: str) -> str:
    if choice is None:
        return f"no overlay has {replicas}"
    assumed = f", if what is assumed holds: {', '.join(choice.assumed)}" if choice.assumed else ""
    return f"the least that has {replicas}: {choice.overlay.name} ({choice.overlay.needs}){assumed}"


def _basis(figure: Figure) -> str:
    return f"{figure.basis}: {figure.where}" if figure.where else figure.basis


def _table(found: StoragePlan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("overlay", no_wrap=True)
    for loss in LOSSES:
        table.add_column(f"{loss}, s", justify="right", no_wrap=True)
    table.add_column("")
    for plan in found.overlays:
        times = (f"{start.seconds:.1f}" for start in plan.starts)
        table.add_row(plan.overlay.name, *times, "meets" if plan.meets else "misses")
    return table


def _told(start: ColdStart) -> str:
    steps = (f"{step.tier} {step.size_bytes:,} bytes {step.seconds:.1f} s" for step in start.steps)
    return "; ".join((f"wait {start.waited_s:.1f} s", f"fixed {start.fixed_s:.1f} s", *steps))


def _to_json(found: StoragePlan, sizes: ReleaseSizes, rates: StorageRates) -> dict[str, Any]:
    return {
        "choice": None if found.choice is None else found.choice.overlay.name,
        "bytes": {
            "weights": sizes.weights,
            "embedder": sizes.embedder,
            "reranker": sizes.reranker,
            "indexes": sizes.indexes,
        },
        "fixed_seconds": _figure(rates.fixed_s),
        "gb_per_s": {name: _figure(figure) for name, figure in rates.rates.items()},
        "wait_seconds": {name: _figure(figure) for name, figure in rates.waits.items()},
        "overlays": [_overlay(plan) for plan in found.overlays],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "basis": figure.basis, "where": figure.where}


def _overlay(plan: OverlayPlan) -> dict[str, Any]:
    return {
        "name": plan.overlay.name,
        "needs": plan.overlay.needs,
        "rank": plan.overlay.rank,
        "meets": plan.meets,
        "assumed": list(plan.assumed),
        "losses": {start.loss: _start(start) for start in plan.starts},
    }


def _start(start: ColdStart) -> dict[str, Any]:
    tiers = {step.tier: {"bytes": step.size_bytes, "seconds": round(step.seconds, 3)} for step in start.steps}
    return {
        "seconds": round(start.seconds, 3),
        "wait_seconds": round(start.waited_s, 3),
        "fixed_seconds": round(start.fixed_s, 3),
        "tiers": tiers,
    }
