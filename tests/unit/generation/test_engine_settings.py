"""The `engine:` passthrough: vLLM's own fields, and nothing that stands elsewhere."""

import json
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest

from rag_stack.errors import ConfigError
from rag_stack.generation import engine_settings
from rag_stack.generation.engine_settings import (
    check_engine_settings,
    check_loader,
    context_tokens,
    engine_arguments,
    loader_name,
    on_this_node,
    times_its_start,
    weight_bytes,
)

FIELDS = {"max_model_len", "enforce_eager", "gpu_memory_utilization"}


def test_known_fields_pass() -> None:
    check_engine_settings({"max_model_len": 1, "enforce_eager": True}, fields=FIELDS)


def test_a_misspelt_field_names_the_right_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_model_len'"):
        check_engine_settings({"max_modell_len": 1}, fields=FIELDS)


@pytest.mark.parametrize("key", ["model", "port", "api_key", "served_model_name"])
def test_what_the_release_says_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.{key} does not belong"):
        check_engine_settings({key: "x"}, fields=FIELDS | {key})


def test_the_context_is_the_setting_or_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 8192}))
    assert context_tokens({"max_model_len": 512}, tmp_path) == 512
    assert context_tokens({}, tmp_path) == 8192


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json"])
def test_a_model_that_does_not_say_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="max_model_len"):
        context_tokens({}, tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "package"),
    [
        ("load_format", "runai_streamer", "runai_model_streamer"),
        ("load_format", "FastSafetensors", "fastsafetensors"),
        ("load_format", "instanttensor", "instanttensor"),
        ("safetensors_load_strategy", "torchao", "torchao"),
    ],
)
def test_a_loader_that_is_not_installed_is_refused(setting: str, value: str, package: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.{setting}.*{package}.*pip install"):
        check_loader({setting: value}, installed=lambda _: False)
    check_loader({setting: value}, installed=lambda name: name == package)


def test_loaders_that_vllm_brings_need_nothing() -> None:
    check_loader({"load_format": "safetensors", "safetensors_load_strategy": "prefetch"}, installed=lambda _: False)
    check_loader({}, installed=lambda _: False)


def test_a_package_is_looked_for_where_python_would_find_it() -> None:
    with pytest.raises(ConfigError, match="tensorizer"):
        check_loader({"load_format": "tensorizer"})


@pytest.mark.parametrize(("worker_cls", "ours"), [(None, True), ("auto", True), ("their.Worker", False)])
def test_a_worker_class_of_the_releases_own_is_kept(worker_cls: str | None, ours: bool) -> None:
    assert times_its_start({} if worker_cls is None else {"worker_cls": worker_cls}) is ours


def test_the_loader_is_named_with_its_strategy() -> None:
    assert loader_name(SimpleNamespace(load_format="auto", safetensors_load_strategy=None)) == "auto"
    prefetch = SimpleNamespace(load_format="safetensors", safetensors_load_strategy="prefetch")
    assert loader_name(prefetch) == "safetensors prefetch"


def test_the_weights_are_the_files_that_are_loaded(tmp_path: Path) -> None:
    assert weight_bytes(tmp_path / "nowhere") == 0
    (tmp_path / "pytorch_model.bin").write_bytes(b"1234567")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert weight_bytes(tmp_path) == 7
    for number in (1, 2):
        (tmp_path / f"model-{number}-of-2.safetensors").write_bytes(b"1234")
    assert weight_bytes(tmp_path) == 8


@pytest.mark.parametrize(
    ("engine", "is_cpu", "bfloat16", "dtype"),
    [
        ({}, True, False, "float32"),
        ({"dtype": "auto"}, True, False, "float32"),
        ({"dtype": "bfloat16"}, True, False, "bfloat16"),
        ({"quantization": "awq"}, True, False, None),
        ({}, True, True, None),
        ({}, False, False, None),
    ],
)
def test_a_cpu_without_bfloat16_computes_in_float32_unless_the_release_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, str], is_cpu: bool, bfloat16: bool, dtype: str | None
) -> None:
    platforms = pytest.importorskip("vllm.platforms")
    monkeypatch.setattr(type(platforms.current_platform), "is_cpu", lambda _: is_cpu)
    monkeypatch.setattr(engine_settings, "_computes_bfloat16", lambda: bfloat16)
    assert on_this_node({**engine, "max_num_seqs": 4}).get("dtype") == dtype
    assert on_this_node({**engine, "max_num_seqs": 4})["max_num_seqs"] == 4


def test_whether_the_cpu_has_bfloat16_is_as_the_kernel_says() -> None:
    pytest.importorskip("torch")
    if platform.machine() != "x86_64":
        assert engine_settings._computes_bfloat16()
        return
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert engine_settings._computes_bfloat16() == ("avx512_bf16" in flags)


@pytest.mark.parametrize(("given", "told"), [({}, True), ({"enable_prompt_tokens_details": False}, False)])
def test_answers_tell_what_was_cached_unless_the_release_says_otherwise(given: dict[str, bool], told: bool) -> None:
    arguments = engine_arguments({"dtype": "float32", **given})
    assert arguments["enable_prompt_tokens_details"] is told
