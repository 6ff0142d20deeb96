"""`rag-stack index build`; the commands for what was built are in `versions`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.artifact import AsJson, Cache, Root, artifacts_config
from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.versions import app
from rag_stack.index.format import IndexMetadata
from rag_stack.index.spec import load_spec
from rag_stack.metrics import MemoryRecorder

__all__ = ["app"]


@app.command()
def build(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="An index spec (YAML).")],
    root: Root = None,
    cache: Cache = None,
    *,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Batches embedded at once (default: one a core)")
    ] = None,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the index has a promoted version that can be read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build an index version from its spec, publish and promote it."""
    with one_line_failures():
        spec = load_spec(spec_file)
        tiers = open_tiers(artifacts_config(root), MemoryRecorder(), cache=cache)
        if if_missing and (built := tiers.catalog.readable("indexes", spec.name)) is not None:
            _report(built, seconds=0.0, as_json=as_json)
            return
        # Imports torch: only for those who build.
        from rag_stack.jobs.index_build import Progress as Embedded
        from rag_stack.jobs.index_build import build_index

        columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("embedding", total=None, rate="reading documents")

            def show(embedded: Embedded) -> None:
                rate = f"{embedded.rate:.1f} passages/s, {embedded.eta_s:.0f} s left"
                bar.update(task, completed=embedded.done, total=embedded.total, rate=rate)

            report = build_index(spec, tiers=tiers, workers=workers or len(os.sched_getaffinity(0)), progress=show)
        _report(report.manifest, seconds=report.seconds, as_json=as_json)


def _report(manifest: Manifest, *, seconds: float, as_json: bool) -> None:
    metadata = IndexMetadata.of(manifest)
    if as_json:
        skipped = [each.model_dump() for each in metadata.skipped]
        typer.echo(json.dumps(_row(manifest) | {"skipped": skipped, "seconds": round(seconds, 3)}))
        return
    for each in metadata.skipped:
        Console(stderr=True).print(f"left out {each.document}: {each.reason}", style="yellow", markup=False)
    counts = f"{metadata.documents} documents, {metadata.passages} passages, {len(metadata.skipped)} left out"
    Console().print(f"[bold]{manifest.ref}[/bold]  {counts}, {seconds:.1f} s", highlight=False)


def _row(manifest: Manifest) -> dict[str, Any]:
    metadata = IndexMetadata.of(manifest)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "documents": metadata.documents,
        "passages": metadata.passages,
        "embedder": metadata.embedder.name,
        "recipe": metadata.recipe,
        "size_bytes": manifest.size_bytes,
    }
