"""`rag-stack key`: a new API key and what the server needs to know of it."""

import hashlib
import json
import secrets
from typing import Annotated

import typer


def key(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Make an API key. Give it to the caller, and its SHA-256 to the release file; it is stored nowhere."""
    secret = f"rs_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    if as_json:
        typer.echo(json.dumps({"key": secret, "sha256": digest}))
        return
    typer.echo(f"key     {secret}")
    typer.echo(f"sha256  {digest}")
    typer.echo(
        "Callers set RAG_STACK_API_KEY to the key; the release lists the sha256 in server.api_key_sha256.", err=True
    )
