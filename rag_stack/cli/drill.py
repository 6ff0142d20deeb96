"""`rag-stack drill`: bad days on purpose, each of which ends with a figure."""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.point import Points
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.admin_calls import AdminCalls
from rag_stack.cli.artifact import AsJson, Root, artifacts_config
from rag_stack.cli.failure import one_line_failures
from rag_stack.config import ArtifactsConfig, Release, load_deployed_release
from rag_stack.errors import ArtifactNotFoundError, InvalidRequestError
from rag_stack.metrics import MemoryRecorder
from rag_stack.recovery.node_loss_drill import drill_node_loss, fetch_here
from rag_stack.recovery.restore_drill import drill_restore
from rag_stack.recovery.rollback_drill import RollbackDrill, drill_rollback
from rag_stack.releases.published import load

app = typer.Typer(
    help="Bad days on purpose: each drill ends with a figure.", no_args_is_help=True, add_completion=False
)

# Not 2, which is a wrong use of the command.
_DOES_NOT_HOLD = 3

Scratch = Annotated[
    Path | None, typer.Option("--scratch", help="Where the copy goes, and is removed again (default: TMPDIR).")
]
Limit = Annotated[float, typer.Option("--limit-s", min=1, help="A step that takes longer has failed.")]


class _Figure(Protocol):
    def to_json(self) -> dict[str, Any]: ...

    def figure(self) -> str: ...


@app.command("restore")
def restore_command(
    source: Annotated[
        str | None,
        typer.Option(
            "--from", envvar="RAG_STACK_ROOT", help="URL of the root that holds the point, or of a copy of that root."
        ),
    ] = None,
    point: Annotated[str | None, typer.Option("--point", help="Which point (default: the newest).")] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="The fresh root: a folder or a URL, empty (default: a folder that is removed again)."
        ),
    ] = None,
    *,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Open everything by digest, and search the canary questions.")
    ] = True,
    server: Annotated[
        str | None, typer.Option("--server", help="Also ask a server that serves the fresh root, for whole answers.")
    ] = None,
    scratch: Scratch = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup point into a fresh root, and see whether it is whole. Exit code 3 when something is not.

    With --to this is the restore itself: the root stays, with everything promoted as it was, and can be served.
    """
    with one_line_failures():
        catalog = Catalog(open_store(artifacts_config(source).root))
        points = Points(catalog.store)
        chosen = points.get(point) if point else points.last()
        with tempfile.TemporaryDirectory(prefix="rag-stack-restore-", dir=scratch) as made:
            target = Catalog(open_store(to or f"file://{made}"))
            drill = drill_restore(
                catalog, chosen, target, verified=verify, server=server, tell=_teller(as_json=as_json)
            )
    _end(drill, drill.problems, as_json=as_json, more=[f"not in the point: {each}" for each in drill.missing])


@app.command("rollback")
def rollback_command(
    name: Annotated[str, typer.Argument(metavar="[indexes/|releases/]NAME", help="An index; or releases/NAME.")],
    root: Root = None,
    *,
    server: Annotated[
        str | None,
        typer.Option("--server", help="Roll what this server serves, with RAG_STACK_ADMIN_KEY, and not a copy."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, roll what is live back, and forward again.")] = False,
    store: Annotated[str | None, typer.Option("--store", help="The live store that holds it (default: NAME).")] = None,
    scratch: Scratch = None,
    limit_s: Limit = 600.0,
    as_json: AsJson = False,
) -> None:
    """Roll back and forward again, and measure until searches are answered from the other version.

    An index is rolled on a copy of its two newest versions unless a --server is given. A release is replicas that start
    and end, so it needs a server. Exit code 3 when a search failed meanwhile.
    """
    kind, _, bare = name.rpartition("/")
    with one_line_failures():
        if kind not in ("", "indexes", "releases"):
            raise InvalidRequestError(f"{name!r} is no index or release; expected NAME, indexes/NAME or releases/NAME")
        if server:
            if not yes:
                raise InvalidRequestError(f"this rolls {name!r} back on {server}, for all its users: say so with --yes")
            drill = _live(kind, bare, server, store=store or bare, limit_s=limit_s)
        elif kind == "releases":
            raise InvalidRequestError("a release is rolled back by replicas that start and end: name a --server")
        else:
            catalog = Catalog(open_store(artifacts_config(root).root))
            with tempfile.TemporaryDirectory(prefix="rag-stack-rollback-", dir=scratch) as made:
                drill = drill_rollback(catalog, bare, Path(made), limit_s=limit_s)
    _end(drill, drill.problems, as_json=as_json)


@app.command("node-loss")
def node_loss_command(
    name: Annotated[str | None, typer.Argument(help="A release that is promoted.")] = None,
    root: Root = None,
    *,
    release: Annotated[Path | None, typer.Option("--release", help="Or a release file.")] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster, on one of whose nodes it runs, beside its peers.")
    ] = None,
    scratch: Scratch = None,
    as_json: AsJson = False,
) -> None:
    """Fetch all that a release serves into an empty cache, and measure until search and weights are ready."""
    with one_line_failures():
        chosen = _release(name, release, root)
        if address:
            # Brings Ray.
            from rag_stack.serving.elsewhere import run_elsewhere

            drill = run_elsewhere(address, fetch_here, chosen, scratch)
        else:
            with tempfile.TemporaryDirectory(prefix="rag-stack-drill-", dir=scratch) as made:
                tiers = open_tiers(chosen.artifacts, MemoryRecorder(), cache=Path(made))
                drill = drill_node_loss(chosen, tiers)
                tiers.cache.wait_synced()
    rows = [f"{each.ref}  {each.size_bytes:,} bytes  {each.seconds:.2f} s" for each in drill.fetched]
    _end(drill, (), as_json=as_json, more=rows)


def _release(name: str | None, file: Path | None, root: str | None) -> Release:
    if (name is None) == (file is None):
        raise InvalidRequestError("give either the name of a promoted release, or --release FILE")
    if file is not None:
        chosen = load_deployed_release(file)
        return chosen.model_copy(update={"artifacts": artifacts_config(root, chosen.artifacts)})
    artifacts = artifacts_config(root, ArtifactsConfig())
    catalog = Catalog(open_store(artifacts.root))
    pointer = catalog.promoted("releases", str(name))
    if pointer is None:
        raise ArtifactNotFoundError(f"no release {name!r} is promoted in {catalog.store.url}; give --release FILE")
    return load(catalog, str(name), pointer.version).release.model_copy(update={"artifacts": artifacts})


def _live(kind: str, name: str, server: str, *, store: str, limit_s: float) -> RollbackDrill:
    from rag_stack.client import Client
    from rag_stack.recovery.live_rollback import roll_index, roll_release

    admin = AdminCalls(server)
    typer.echo(f"rolling {kind or 'indexes'}/{name} back on {server}, which is live, and forward again", err=True)
    if kind == "releases":
        return roll_release(admin, name, server=server, limit_s=limit_s)
    with Client(base_url=server) as client:
        return roll_index(admin, client, name, store=store, server=server, limit_s=limit_s)


def _teller(*, as_json: bool) -> Any:  # noqa: ANN401 - a function
    return (lambda _: None) if as_json else (lambda line: typer.echo(line, err=True))


def _end(drill: _Figure, problems: tuple[str, ...], *, as_json: bool, more: list[str] | None = None) -> None:
    """Say what was measured, the figure last. Exit code 3 when something does not hold."""
    if as_json:
        typer.echo(json.dumps(drill.to_json()))
    else:
        for line in more or []:
            typer.echo(line)
    for problem in problems:
        typer.echo(f"error: {' '.join(problem.split())}", err=True)
    if not as_json:
        typer.echo(drill.figure())
    if problems:
        raise typer.Exit(_DOES_NOT_HOLD)
