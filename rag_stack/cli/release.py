"""`rag-stack release apply|status|history|rollback`: the versions of a release, and how one takes over from another."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.cli.admin_calls import AdminCalls, Server
from rag_stack.cli.artifact import AsJson, Cache, Root, artifacts_config
from rag_stack.cli.collection import add_gc
from rag_stack.cli.failure import fail, one_line_failures
from rag_stack.cli.output import printable, shortened
from rag_stack.config import Release, load_deployed_release
from rag_stack.errors import ArtifactError, ConfigError, IncompatibleReleaseError, RollbackError
from rag_stack.generation.weights import check_files
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.difference import Change
from rag_stack.releases.listing import history_row, status_row, version_rows
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.published import load
from rag_stack.releases.rollout import Applied, Rollout

# As `index build` ends when it has published what it did not promote.
_NOT_PROMOTED: Final = 3
_POLL_S: Final = 1.0
_SHOWN_CHARS: Final = 60

app = typer.Typer(help="Releases in the object store, and their rollouts.", no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(help="A release, by the `name:` of its file.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A release file, or a cluster's serve.yaml.")],
    root: Root = None,
    cache: Cache = None,
    *,
    now: Annotated[bool, typer.Option("--now", help="Promote it at once, without steps and gates.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Also while another rollout runs, which ends.")] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="The server is stopped: promote at once, also what it could not go to replica by replica."
        ),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the rollout until it is through.")] = False,
    wait_s: Annotated[float | None, typer.Option("--wait-s", min=0, help="Follow for so long at most.")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Publish a release version and begin its rollout; the first of a name is promoted at once.

    The version is made from what the file pins, so the same file is the same version. What of it belongs to the
    deployment (server, scaling, drain ...) is no part of a version: a server takes it from its file when it starts.

    Exit code 3: it was rolled back while this command waited. 1: any other failure.
    """
    with one_line_failures():
        chosen = load_deployed_release(file)
        tiers = open_tiers(artifacts_config(root, chosen.artifacts), MemoryRecorder(), cache=cache)
        rollout = Rollout(tiers.catalog, chosen.name)
        pinned = _pinned(chosen, tiers, known_engine=_known_engine(rollout))
        applied = rollout.apply(pinned, at_once=now, replacing=replace, restart=restart, reason=reason)
        if not as_json:
            _print_applied(chosen.name, applied)
        if not wait or applied.outcome == "unchanged":
            if as_json:
                typer.echo(json.dumps({"name": chosen.name, **applied.to_json()}))
            return
        _follow(rollout, applied, limit_s=wait_s, as_json=as_json)


@app.command()
def status(name: Name, root: Root = None, server: Server = None, *, as_json: AsJson = False) -> None:
    """What is promoted, how the rollout stands, and, with --server, what it waits for."""
    with one_line_failures():
        row = (
            AdminCalls(server).get(f"/admin/releases/{name}")
            if server
            else {**status_row(rollout := _rollout(name, root)), "versions": version_rows(rollout.catalog, name)}
        )
    if as_json:
        typer.echo(json.dumps(row))
    else:
        _print_status(row)


@app.command()
def history(
    name: Name,
    root: Root = None,
    server: Server = None,
    *,
    last: Annotated[int | None, typer.Option("--last", min=1, max=1000, help="Only so many (default: all).")] = None,
    as_json: AsJson = False,
) -> None:
    """What was promoted, when and why, and the rollouts that ended, the last first."""
    with one_line_failures():
        row = (
            AdminCalls(server).get(f"/admin/releases/{name}/history?limit={last or 1000}")
            if server
            else history_row(_rollout(name, root), last=last)
        )
    if as_json:
        typer.echo(json.dumps(row))
    else:
        _print_history(row)


@app.command()
def rollback(
    name: Name,
    root: Root = None,
    server: Server = None,
    *,
    to: Annotated[str | None, typer.Option("--to", help="A version further back (default: the one before).")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Take the running rollout back; else promote what was promoted before. Again goes further back.

    A server follows as soon as it looks. It need not run: then it starts with the version gone back to.
    """
    with one_line_failures():
        if server:
            row = AdminCalls(server).post(f"/admin/releases/{name}/rollback", {"to": to, "reason": reason})
        else:
            rollout = _rollout(name, root)
            rollout.rollback(to=to, reason=reason)
            row = status_row(rollout)
    if as_json:
        typer.echo(json.dumps(row))
    else:
        _print_status(row)


add_gc(app, "releases")


def _rollout(name: str, root: str | None) -> Rollout:
    return Rollout(Catalog(open_store(artifacts_config(root).root)), name)


def _pinned(chosen: Release, tiers: Tiers, *, known_engine: Mapping[str, Any]) -> PinnedRelease:
    """The release with all its versions, of which the weights and the engine's settings are checked."""
    try:
        pinned = pin(chosen, tiers)
        check_files(tiers.resolve("models", pinned.release.model.name, pinned.release.model.version))
    except ArtifactError as exc:
        raise IncompatibleReleaseError(f"the release pins what cannot be served: {exc.message}") from exc
    if chosen.engine and chosen.engine != known_engine:
        _check_engine(chosen.engine)
    return pinned


def _check_engine(engine: Mapping[str, Any]) -> None:
    # Imports vLLM, some seconds: only for those who change something.
    from rag_stack.generation.engine_settings import check_engine_settings, check_loader, vllm_fields
    from rag_stack.generation.kv_settings import check_kv_settings, vllm_kv_names

    try:
        check_engine_settings(engine, fields=vllm_fields())
        # Names alone: this machine need not be one of those that serve.
        check_kv_settings(engine, names=vllm_kv_names(), platform=None)
        check_loader(engine)
    except ConfigError as exc:
        raise IncompatibleReleaseError(f"the engine would not start: {exc.message}") from exc


def _known_engine(rollout: Rollout) -> Mapping[str, Any]:
    """The settings with which the release is served now, which were checked when it was applied."""
    plan = rollout.plan()
    try:
        return load(rollout.catalog, rollout.name, plan.goal).release.engine if plan else {}
    except ArtifactError:
        return {}


def _follow(rollout: Rollout, applied: Applied, *, limit_s: float | None, as_json: bool) -> None:
    """Until nothing moves any more. Raises RollbackError, as exit code 3, when the version is not what came of it."""
    began_s, told = time.monotonic(), ""
    while (plan := rollout.settle()).running and (limit_s is None or time.monotonic() - began_s < limit_s):
        steps = len(plan.rollout.steps)
        line = f"{plan.state} {plan.old} -> {plan.new}  step {plan.step + 1} of {steps}  {plan.share:.0%}"
        if line != told and not as_json:
            typer.echo(line, err=True)
        told = line
        time.sleep(_POLL_S)
    if as_json:
        typer.echo(json.dumps({"name": rollout.name, **applied.to_json(), "plan": plan.to_json()}))
    if plan.running:
        raise RollbackError(f"{applied.version} is still {plan.state} after {limit_s:g} s; it goes on")
    if plan.goal != applied.version:
        fail(RollbackError(f"{applied.version} was rolled back: {plan.reason}"), code=_NOT_PROMOTED)
    if not as_json:
        typer.echo(f"releases/{rollout.name}/{plan.goal} is promoted")


def _print_applied(name: str, applied: Applied) -> None:
    told = {
        "rollout": f"begins to take over from {applied.plan.old}",
        "promoted": "is promoted",
        "unchanged": "serves already: nothing to roll out",
    }
    typer.echo(f"releases/{name}/{applied.version} {told[applied.outcome]}")
    _print_changes(applied.changes)


def _print_changes(changes: Sequence[Change]) -> None:
    width = max((len(change.field) for change in changes), default=0)
    for change in changes:
        typer.echo(f"  {change.field:<{width}}  {_short(change.before)} -> {_short(change.after)}")


def _print_status(row: Mapping[str, Any]) -> None:
    plan, promoted = row["plan"], row["promoted"]
    typer.echo(f"releases/{row['name']}/{row['version']}  {plan['state']}")
    if promoted:
        typer.echo(
            f"promoted {promoted['version']} at {promoted['promoted_at']} by {promoted['by']}  {promoted['reason']}"
        )
    if plan["state"] != "steady":
        steps = len(plan["rollout"]["steps"])
        where = f"step {plan['step'] + 1} of {steps}, {plan['share']:.0%}, since {_time(plan['began_s'])}"
        typer.echo(f"from {plan['old']} to {plan['new']}, {where}")
    if plan["reason"]:
        typer.echo(f"reason   {printable(plan['reason'])}")
    for key, value in (row.get("now") or {}).items():
        typer.echo(f"{key:<8} {printable(str(value))}")
    for version in row.get("versions", ()):
        mark = "promoted" if version["promoted"] else ""
        typer.echo(f"  {version['version']}  {version['published_at']}  {mark}".rstrip())


def _print_history(row: Mapping[str, Any]) -> None:
    table = Table("at (UTC)", "what", "version", "from", "by", "reason", box=None, header_style="bold", pad_edge=False)
    for at, *cells in sorted(_events(row), key=lambda event: event[0], reverse=True):
        table.add_row(at.isoformat(timespec="seconds").removesuffix("+00:00").replace("T", " "), *map(printable, cells))
    Console().print(table, markup=False)


def _events(row: Mapping[str, Any]) -> list[tuple[datetime, str, str, str, str, str]]:
    """Promotions, and the rollouts that ended in none."""
    found = []
    for each in row["promotions"]:
        what = "rollback" if each["restores"] is not None else "promoted"
        at = datetime.fromisoformat(each["promoted_at"])
        found.append((at, what, each["version"], each["previous"] or "", each["by"], each["reason"]))
    for each in row["rollouts"]:
        if each["outcome"] != "promoted":
            at = datetime.fromtimestamp(each["ended_s"], UTC)
            what = each["outcome"].replace("_", " ")
            found.append((at, what, each["new"], each["old"], each["by"], each["reason"]))
    return found


def _short(value: object) -> str:
    return "-" if value is None else shortened(value if isinstance(value, str) else json.dumps(value), _SHOWN_CHARS)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
