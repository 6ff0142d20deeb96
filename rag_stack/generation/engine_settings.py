"""The release's `engine:` settings: passed through to vLLM, checked against vLLM's own fields."""

import dataclasses
import difflib
import importlib.util
import json
import logging
import platform
from collections.abc import Callable, Collection, Mapping
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
# Loaders that vLLM 0.29 knows and does not bring: the package that each needs.
_LOADER_PACKAGES = {
    "fastsafetensors": "fastsafetensors",
    "instanttensor": "instanttensor",
    "modelexpress": "modelexpress",
    "runai_streamer": "runai_model_streamer",
    "runai_streamer_sharded": "runai_model_streamer",
    "tensorizer": "tensorizer",
    "torchao": "torchao",
}
_LOG = logging.getLogger(__name__)
# vLLM 0.29 without `max_num_seqs`: 128 on a CPU, 256 or 1024 on a GPU, by its memory.
_LEAST_SEQUENCES = 128
# What times an engine's start, in place of vLLM's own worker; named and not imported, since it is the worker's process
# that does so.
WORKER_CLASS = "rag_stack.generation.worker.TimedWorker"


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


def check_loader(
    engine: Mapping[str, Any],
    *,
    installed: Callable[[str], bool] = lambda package: importlib.util.find_spec(package) is not None,
) -> None:
    """Raise ConfigError when the weights' loader that the release names is not installed."""
    for setting in ("load_format", "safetensors_load_strategy"):
        chosen = engine.get(setting)
        package = _LOADER_PACKAGES.get(str(chosen).lower())
        if package is not None and not installed(package):
            raise ConfigError(
                f"engine.{setting} is {chosen!r}, which needs the package {package!r}: install it "
                f"(`pip install {package.replace('_', '-')}`), or leave {setting} out to read the weights with "
                "safetensors"
            )


def times_its_start(engine: Mapping[str, Any]) -> bool:
    """Whether the engine's worker is ours; a release that names a worker class of its own keeps it."""
    return engine.get("worker_cls", "auto") in ("auto", WORKER_CLASS)


def engine_arguments(engine: Mapping[str, Any]) -> dict[str, Any]:
    """A release's own as they are on this node, with our worker class unless it names one. Imports vLLM: seconds.

    An answer tells how much of its prompt was cached, unless the release says that it shall not: the order of documents
    is chosen by that.
    """
    here = {"enable_prompt_tokens_details": True, **on_this_node(engine)}
    return {**here, "worker_cls": WORKER_CLASS} if times_its_start(engine) else here


def on_this_node(engine: Mapping[str, Any]) -> dict[str, Any]:
    """A release's settings, with the `dtype` that vLLM's `auto` would not find. Imports vLLM: seconds.

    On every x86 CPU that is bfloat16. Where the CPU has no instructions for it, a prompt takes several times as long as
    in float32; weights, keys and values take twice the memory in that. What the release names as its `dtype` is kept,
    and a quantized model's is its own.
    """
    from vllm.platforms import current_platform

    chosen = engine.get("dtype", "auto") != "auto" or engine.get("quantization")
    if chosen or not current_platform.is_cpu() or _computes_bfloat16():
        return dict(engine)
    _LOG.info("this CPU has no bfloat16 instructions: the engine computes in float32, unless `engine.dtype` is given")
    return {**engine, "dtype": "float32"}


def _computes_bfloat16() -> bool:
    """By the test by which vLLM picks its own kernels; Arm has those for either."""
    import torch

    return platform.machine() not in ("x86_64", "AMD64") or bool(torch.cpu._is_avx512_bf16_supported())


def loader_name(load_config: object) -> str:
    """How vLLM reads the weights, from its LoadConfig: `auto`, `safetensors prefetch`, `runai_streamer`."""
    parts = (getattr(load_config, name, None) for name in ("load_format", "safetensors_load_strategy"))
    return " ".join(str(part) for part in parts if part)


def weight_bytes(model_directory: Path) -> int:
    """Bytes of the weights' files, which all workers together read; 0 where the model is not a local directory.

    Not of the tensors: once loaded, they may be packed into another shape.
    """
    for suffix in ("safetensors", "bin", "pt"):
        sizes = [path.stat().st_size for path in model_directory.glob(f"*.{suffix}")]
        if sizes:
            return sum(sizes)
    return 0


def max_sequences(engine: Mapping[str, Any]) -> int:
    """Answers that the engine generates side by side: `max_num_seqs`, or the least of vLLM's own defaults."""
    given = engine.get("max_num_seqs")
    return given if isinstance(given, int) and given > 0 else _LEAST_SEQUENCES


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
