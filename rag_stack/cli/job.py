"""`rag-stack job`: index builds on a Ray cluster."""

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.cli.artifact import AsJson
from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.output import printable
from rag_stack.errors import InvalidRequestError
from rag_stack.index.spec import load_spec
from rag_stack.jobs.engine import Engine
from rag_stack.jobs.submission import DEFAULT_ADDRESS, Job, JobClient

app = typer.Typer(help="Index builds as jobs of a Ray cluster.", no_args_is_help=True, add_completion=False)

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help=f"Address of the cluster's dashboard (default: {DEFAULT_ADDRESS}).",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `submit` and `list` print it.")]


@app.command()
def submit(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="An index spec (YAML); it is sent along.")],
    address: Address = None,
    root: Annotated[
        str | None,
        typer.Option("--root", help="URL of the object store, as the cluster reaches it (default: the cluster's own)."),
    ] = None,
    *,
    engine: Annotated[Engine, typer.Option(help="As in `rag-stack index build`.")] = "auto",
    promote: Annotated[bool, typer.Option("--promote/--no-promote")] = True,
    force: Annotated[bool, typer.Option("--force", help="Promote it even if a gate fails; needs a --reason.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the promotion's history.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show what it prints until it has ended.")] = True,
) -> None:
    """Build an index version on a cluster: the same command as `rag-stack index build`, there.

    The spec is sent, documents are not: the cluster's nodes must reach the source's folder (a shared volume) or bucket.
    Ctrl-C stops to watch it, and not the job.
    """
    with one_line_failures():
        if force and not reason:
            raise InvalidRequestError("--force promotes what has failed its gates: say why with --reason")
        spec = load_spec(spec_file)
        if not spec.source.remote:
            typer.echo(
                f"note: {spec.source.folder} is read on the cluster: it must be mounted there on every node", err=True
            )
        options = [
            *(["--root", root] if root else []),
            *(["--engine", engine] if engine != "auto" else []),
            *([] if promote else ["--no-promote"]),
            *(["--force"] if force else []),
            *(["--reason", reason] if reason else []),
        ]
        client = _client(address)
        job_id = client.submit(spec, options=options)
        typer.echo(job_id)
        if wait:
            _follow(client, job_id)


@app.command()
def status(job_id: JobId, address: Address = None, *, as_json: AsJson = False) -> None:
    """The state of a job. Exit code 1 when it has failed."""
    with one_line_failures():
        job = _client(address).job(job_id)
    _print([job], as_json=as_json)
    if job.status == "FAILED":
        raise typer.Exit(1)


@app.command()
def logs(
    job_id: JobId,
    address: Address = None,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it has ended.")] = False,
) -> None:
    """What a job has printed: its progress, what it left out, and how it ended."""
    with one_line_failures():
        client = _client(address)
        if follow:
            _follow(client, job_id)
        else:
            typer.echo(printable(client.logs(job_id)), nl=False)


@app.command()
def cancel(job_id: JobId, address: Address = None) -> None:
    """Stop a job. What it has embedded stays for the next build; nothing is half published."""
    with one_line_failures():
        stopped = _client(address).cancel(job_id)
    typer.echo("stopping" if stopped else "it had ended already")


@app.command(name="list")
def list_jobs(address: Address = None, *, as_json: AsJson = False) -> None:
    """The builds that the cluster remembers, latest first."""
    with one_line_failures():
        jobs = _client(address).jobs()
    _print(jobs, as_json=as_json)


def _client(address: str | None) -> JobClient:
    # Ray would let it win over --address.
    os.environ.pop("RAY_ADDRESS", None)
    return JobClient(address or DEFAULT_ADDRESS)


def _follow(client: JobClient, job_id: str) -> None:
    for text in client.follow(job_id):
        typer.echo(printable(text), nl=False)
    job = client.job(job_id)
    if job.status != "SUCCEEDED":
        typer.echo(f"error: the job {job_id} has {job.status.lower()}: {' '.join(job.message.split())}", err=True)
        raise typer.Exit(1)


def _print(jobs: list[Job], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in jobs]))
        return
    table = Table("job", "index", "status", "started", "ended", "message", box=None)
    for job in jobs:
        first = job.message.strip().splitlines()[0] if job.message.strip() else ""
        table.add_row(job.job_id, job.index, job.status, _time(job.started_at), _time(job.ended_at), printable(first))
    Console().print(table)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
