"""The release's `engine:` settings: passed through to vLLM, checked against vLLM's own fields."""

import dataclasses
import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rag_stack.errors import ConfigError

# What the release file says elsewhere; given here too it would be said twice.
_OWNED = {
    "model": "the release's `model:`",
    "tokenizer": "the release's `model:`",
    "served_model_name": "the name of the release's model",
    "host": "the release's `server:`",
    "port": "the release's `server:`",
    "api_key": "the release's `server:`",
}


def vllm_fields() -> frozenset[str]:
    """The names of all arguments of vLLM's engine and of its OpenAI front end. Imports vLLM: seconds."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    return frozenset(field.name for args in (AsyncEngineArgs, FrontendArgs) for field in dataclasses.fields(args))


def check_engine_settings(engine: Mapping[str, Any], *, fields: Collection[str]) -> None:
    """Raise ConfigError for a key that vLLM does not have, with the one that was probably meant."""
    for key in engine:
        if key in _OWNED:
            raise ConfigError(f"engine.{key} does not belong in `engine:`; it follows from {_OWNED[key]}")
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"engine.{key} is not an argument of vLLM{hint}")


def context_tokens(engine: Mapping[str, Any], model_directory: Path) -> int:
    """Tokens that prompt and answer may take together: `max_model_len`, or else the model's own limit."""
    if isinstance(engine.get("max_model_len"), int):
        return int(engine["max_model_len"])
    path = model_directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        text_config = config.get("text_config") or config
        return int(text_config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(
            f"the model's context length is not in {path.name}: set `engine: {{max_model_len: ...}}` in the release"
        ) from exc
