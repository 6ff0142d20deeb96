"""What a release has from somewhere else than its file: keys, where artifacts are, where to listen."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rag_stack.config import Release
from rag_stack.errors import ConfigError

# The environment's name for keys, the file of RAG_STACK_KEYS_DIRECTORY, and the release's field.
_KEYS: Final = (
    ("RAG_STACK_API_KEYS", "api", "api_key_sha256"),
    ("RAG_STACK_ADMIN_KEYS", "admin", "admin_key_sha256"),
)
KEYS_DIRECTORY: Final = "RAG_STACK_KEYS_DIRECTORY"


def with_overrides(
    release: Release,
    *,
    host: str | None = None,
    port: int | None = None,
    root: str | None = None,
    cache: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Release:
    """The release with flags, and then the environment, on top of the file. Keys add up, all others replace.

    Raises ConfigError when RAG_STACK_KEYS_DIRECTORY is set and a file of keys is not there or empty: without its keys a
    server would be open.
    """
    root = root or environ.get("RAG_STACK_ROOT") or None
    cache = cache or (Path(kept) if (kept := environ.get("RAG_STACK_CACHE")) else None)
    server: dict[str, Any] = {k: v for k, v in (("host", host), ("port", port)) if v is not None}
    artifacts = {k: v for k, v in (("root", root), ("cache", cache)) if v is not None}
    for variable, file, field in _KEYS:
        keys = [*_listed(environ.get(variable, "")), *_in_file(environ, file)]
        if keys:
            digests = (hashlib.sha256(key.encode()).hexdigest() for key in keys)
            server[field] = tuple(dict.fromkeys((*getattr(release.server, field), *digests)))
    return release.model_copy(
        update={
            "server": release.server.model_copy(update=server),
            "artifacts": release.artifacts.model_copy(update=artifacts),
        }
    )


def _listed(text: str) -> list[str]:
    return [key.strip() for key in text.split(",") if key.strip()]


def _in_file(environ: Mapping[str, str], file: str) -> list[str]:
    """The keys in a file of the directory, one a line; none where no directory is named."""
    directory = environ.get(KEYS_DIRECTORY)
    if not directory:
        return []
    path = Path(directory) / file
    remedy = f"put one key a line there (`rag-stack key` makes one), or unset {KEYS_DIRECTORY} to serve without keys"
    try:
        keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(f"cannot read the keys in {path}: {reason}; {remedy}") from exc
    if not keys:
        raise ConfigError(f"{path} holds no key: {remedy}")
    return keys
