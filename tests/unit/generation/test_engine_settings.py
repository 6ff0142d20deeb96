"""The `engine:` passthrough: vLLM's own fields, and nothing that stands elsewhere."""

import json
from pathlib import Path

import pytest

from rag_stack.errors import ConfigError
from rag_stack.generation.engine_settings import check_engine_settings, context_tokens

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
