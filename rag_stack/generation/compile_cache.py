"""Where vLLM keeps what it compiled and found out about a model: with the node's cache, for the next start to find."""

import hashlib
import json
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from rag_stack.config import Release

_ROOT: Final = "VLLM_CACHE_ROOT"
_FOLDER: Final = "compiled"
_CLASSES: Final = "modelinfos"  # as vLLM calls it


def keep_compiled(release: Release, environ: MutableMapping[str, str] = os.environ) -> Path:
    """Set vLLM's cache directory for this process and its children, unless it is set already; returns what is set.

    It survives the process and, with the node's cache, the pod: torch.compile's output, which takes minutes, and with
    compilation off still what vLLM finds out about a model's class in a process of its own. Megabytes. vLLM keys what
    is in it by its own version and settings; two releases whose settings differ have a directory each, but one for
    what is known of models' classes, which only vLLM's own version changes: to find it out takes a Python that imports
    vLLM.
    """
    if _ROOT in environ:
        return Path(environ[_ROOT])
    compiled = Path(environ.get("RAG_STACK_CACHE") or release.artifacts.cache).absolute() / _FOLDER
    root = compiled / settings_key(release)
    # Without them vLLM begins with nothing known, and goes on.
    with suppress(OSError):
        (compiled / _CLASSES).mkdir(parents=True, exist_ok=True)
        root.mkdir(exist_ok=True)
        (root / _CLASSES).symlink_to(Path("..", _CLASSES), target_is_directory=True)
    environ[_ROOT] = str(root)
    return root


def settings_key(release: Release) -> str:
    """The same for releases of one model and the same engine settings, whatever else differs."""
    settings = [release.model.name, release.model.digest or release.model.version, release.engine]
    known = json.dumps(settings, sort_keys=True, default=str)
    return f"{release.model.name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
