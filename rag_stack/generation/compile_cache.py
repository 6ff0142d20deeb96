"""Where vLLM keeps what it compiled and found out about a model: with the node's cache, for the next start to find."""

import hashlib
import json
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from rag_stack.config import Release

_ROOT: Final = "VLLM_CACHE_ROOT"
_FOLDER: Final = "compiled"


def keep_compiled(release: Release, environ: MutableMapping[str, str] = os.environ) -> Path:
    """Set vLLM's cache directory for this process and its children, unless it is set already; returns what is set.

    It survives the process and, with the node's cache, the pod: torch.compile's output, which takes minutes, and with
    compilation off still what vLLM finds out about a model's class in a process of its own. Megabytes. vLLM keys what
    is in it by its own version and settings; two releases whose settings differ have a directory each.
    """
    cache = Path(environ.get("RAG_STACK_CACHE") or release.artifacts.cache).absolute()
    return Path(environ.setdefault(_ROOT, str(cache / _FOLDER / settings_key(release))))


def settings_key(release: Release) -> str:
    """The same for releases of one model and the same engine settings, whatever else differs."""
    settings = [release.model.name, release.model.digest or release.model.version, release.engine]
    known = json.dumps(settings, sort_keys=True, default=str)
    return f"{release.model.name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
