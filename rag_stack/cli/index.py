"""`rag-stack index build`; the commands for what was built are in `versions`."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.artifact import AsJson, Cache, Root, artifacts_config
from rag_stack.cli.failure import fail, one_line_failures
from rag_stack.cli.progress import BuildProgress
from rag_stack.cli.versions import app
from rag_stack.errors import IndexVersionError, InvalidRequestError
from rag_stack.index.format import IndexMetadata, Skipped
from rag_stack.index.listing import version_row
from rag_stack.index.spec import load_spec
from rag_stack.jobs.engine import Engine
from rag_stack.metrics import MemoryRecorder

if TYPE_CHECKING:
    from rag_stack.jobs.build import BuildReport


_SHOWN_SKIPPED: Final = 20
# Not 2, which is a wrong use of the command.
_NOT_PROMOTED: Final = 3

__all__ = ["app"]


@app.command()
def build(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="An index spec (YAML).")],
    root: Root = None,
    cache: Cache = None,
    *,
    engine: Annotated[
        Engine,
        typer.Option(
            help="Who embeds. local: threads of this process. ray: an actor pool on Ray Data, in the cluster of "
            "RAY_ADDRESS or else a Ray that is started for this build on this machine. auto: local, and ray as soon as "
            "more than 1,000 passages have to be embedded: starting Ray takes as long as some hundred of them."
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=256, help="Batches embedded at once here (default: one a core)"),
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="Whether the version is served from now on.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it even if a gate fails; needs a --reason, which is kept.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the promotion's history.")] = "",
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the index has a promoted version that can be read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build an index version from its spec, check its gates, publish and promote it.

    Only passages that no build of this index has embedded are embedded. A build that was killed goes on where it was:
    run it again.

    Exit code 3: it is published and not promoted, because a gate failed or another build was faster; with --json the
    report is printed all the same. 1: any other failure.
    """
    with one_line_failures():
        if force and not reason:
            raise InvalidRequestError("--force promotes what has failed its gates: say why with --reason")
        spec = load_spec(spec_file)
        tiers = open_tiers(artifacts_config(root), MemoryRecorder(), cache=cache)
        if if_missing and (built := _readable(tiers.catalog, spec.name)) is not None:
            _report(built, seconds=0.0, as_json=as_json)
            return
        # Imports torch: only for those who build.
        from rag_stack.jobs.build import NotPromotedError
        from rag_stack.jobs.index_build import build_index

        try:
            with BuildProgress() as progress:
                report = build_index(
                    spec,
                    tiers=tiers,
                    engine=engine,
                    workers=workers or len(os.sched_getaffinity(0)),
                    promote=promote,
                    force=force,
                    reason=reason,
                    progress=progress,
                )
        except NotPromotedError as exc:
            if as_json:
                _report_build(exc.report, as_json=True)
            fail(exc, code=_NOT_PROMOTED)
        _report_build(report, as_json=as_json)


def _readable(catalog: Catalog, name: str) -> Manifest | None:
    """What is promoted, if this release can open it."""
    manifest = catalog.readable("indexes", name)
    with suppress(IndexVersionError):
        if manifest is not None:
            IndexMetadata.of(manifest)
            return manifest
    return None


def _report_build(report: "BuildReport", *, as_json: bool) -> None:
    if as_json:
        facts = {
            "skipped": [each.model_dump() for each in report.skipped],
            "skipped_documents": report.skipped_documents,
            "embedded": report.embedded,
            "reused": report.reused,
            "embed_rate": round(report.embed_rate, 2),
            "gates": [each.model_dump() for each in report.gates],
            "promoted": report.promoted,
            "not_promoted": report.not_promoted,
            "full_rebuild_reason": report.full_rebuild_reason,
            "seconds": round(report.seconds, 3),
        }
        typer.echo(json.dumps(version_row(report.manifest) | facts))
        return
    notes = Console(stderr=True)
    _print_skipped(notes, report.skipped, report.skipped_documents)
    if report.full_rebuild_reason:
        notes.print(f"full rebuild: {report.full_rebuild_reason}", style="yellow", markup=False)
    for gate in report.gates:
        if not gate.passed:
            notes.print(f"promoted in spite of {gate.name}: {gate.detail}", style="yellow", markup=False)
    counts = (
        f"{report.documents} documents, {report.passages} passages ({report.embedded} embedded, {report.reused} "
        f"reused), {report.skipped_documents} left out, {report.seconds:.1f} s"
    )
    Console().print(f"[bold]{report.manifest.ref}[/bold]  {counts}", highlight=False)
    if not report.promoted:
        Console().print(f"not promoted: {report.not_promoted}; `rag-stack index promote` does", highlight=False)


def _report(manifest: Manifest, *, seconds: float, as_json: bool) -> None:
    metadata = IndexMetadata.of(manifest)
    if as_json:
        facts = {
            "skipped": [each.model_dump() for each in metadata.skipped],
            "skipped_documents": metadata.skipped_documents,
            "seconds": round(seconds, 3),
        }
        typer.echo(json.dumps(version_row(manifest) | facts))
        return
    _print_skipped(Console(stderr=True), metadata.skipped, metadata.skipped_documents)
    counts = f"{metadata.documents} documents, {metadata.passages} passages, {metadata.skipped_documents} left out"
    Console().print(f"[bold]{manifest.ref}[/bold]  {counts}, {seconds:.1f} s", highlight=False)


def _print_skipped(notes: Console, skipped: Sequence[Skipped], count: int) -> None:
    shown = skipped[:_SHOWN_SKIPPED]
    for each in shown:
        notes.print(f"left out {each.document}: {each.reason}", style="yellow", markup=False)
    if count > len(shown):
        notes.print(f"... and {count - len(shown)} more", style="yellow", markup=False)
