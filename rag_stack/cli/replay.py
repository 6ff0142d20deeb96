"""`rag-stack replay`: ask a server again what it was asked, without retrieval, and compare the answers."""

import difflib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError

from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.output import printable
from rag_stack.client.endpoint import API_KEY_VARIABLE, resolve_endpoint
from rag_stack.errors import EngineError, InvalidRequestError, RagStackError, UnavailableError
from rag_stack.protocol import ReplayRecord

_TIMEOUT_S: Final = 900.0


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An answer as JSON, - for stdin.")],
    server: Annotated[str | None, typer.Option("--server", help="The server (default: as `rag-stack ask`).")] = None,
    *,
    any_release: Annotated[
        bool, typer.Option("--any-release", help="Also if another release version answers now.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print both answers as JSON.")] = False,
) -> None:
    """Ask again what gave a recorded answer: the same messages and settings, and no retrieval.

    FILE is a whole answer that was asked with `"include": ["rag.replay"]`. Exit code 0: the texts are equal. 1: they
    are not, and the difference is printed; or something else failed. A greedy answer is reproduced by the same release
    on the same hardware; on another, or in another batch, the engine's arithmetic may differ in its last bits.
    """
    with one_line_failures():
        record, before = _read(file)
        answer, version = _ask(record, server)
        if version != (record.release_version or "") and not any_release:
            raise InvalidRequestError(
                f"the answer is of release {record.release}@{record.release_version}, and the server answers with "
                f"{record.release}@{version or '?'}: roll back to it, or compare all the same with --any-release"
            )
        after = _text(answer)
    equal = before == after
    if as_json:
        typer.echo(json.dumps({"equal": equal, "release_version": version, "before": before, "after": after}))
    elif equal:
        typer.echo(f"equal: {len(before)} characters, release {record.release}@{version or '?'}")
    else:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "recorded", "replayed", lineterm="")
        typer.echo(printable("\n".join(lines)))
    if not equal:
        raise typer.Exit(1)


def _read(file: Path) -> tuple[ReplayRecord, str]:
    try:
        data = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        answer = json.loads(data)
    except (OSError, ValueError) as exc:
        raise InvalidRequestError(f"cannot read an answer from {file}: {exc}") from exc
    found = (answer.get("rag") or {}).get("replay") if isinstance(answer, dict) else None
    if found is None:
        raise InvalidRequestError(f'{file} has no `rag.replay`: ask with "include": ["rag.replay"], without a stream')
    try:
        return ReplayRecord.model_validate(found), _text(answer)
    except ValidationError as exc:
        raise InvalidRequestError(f"the `rag.replay` of {file} is not a record of this rag_stack: {exc}") from exc


def _ask(record: ReplayRecord, server: str | None) -> tuple[dict[str, Any], str]:
    """The new answer, and the release version that gave it."""
    # Imported here: it is not in the base install, whose other commands share this module's place.
    import httpx

    endpoint = resolve_endpoint(server, api_key=os.environ.get(API_KEY_VARIABLE))
    url = endpoint.base_url.removesuffix("/v1") + record.path
    headers = {"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    try:
        reply = httpx.post(url, json={**record.request, "rag_retrieval": "none"}, headers=headers, timeout=_TIMEOUT_S)
    except httpx.HTTPError as exc:
        raise UnavailableError(f"no answer from {url}: {exc or type(exc).__name__}; does the server run?") from exc
    try:
        answer = reply.json()
    except ValueError as exc:
        raise EngineError(f"{url} answered {reply.status_code} and no JSON; is it a rag_stack server?") from exc
    if reply.status_code >= 400 or not isinstance(answer, dict):
        raise RagStackError(f"{url} answered {reply.status_code}: {reply.text[:300]}")
    return answer, str((answer.get("rag") or {}).get("release_version") or "")


def _text(answer: dict[str, Any]) -> str:
    """The text of the first choice. Raises EngineError when there is none."""
    try:
        choice = answer["choices"][0]
        return str((choice["message"]["content"] if "message" in choice else choice["text"]) or "")
    except (KeyError, IndexError, TypeError) as exc:
        raise EngineError("an answer without choices cannot be compared") from exc
