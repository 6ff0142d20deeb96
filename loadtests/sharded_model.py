"""A model of any size with random weights, in several safetensors shards, for benchmarks of moving weights."""

from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SHARDS: Final = 5
_HIDDEN: Final = 2048
_MLP: Final = 5632
_VOCABULARY: Final = 32768


def write_model(directory: Path, *, size_mb: int) -> Path:
    """Write a Llama of about `size_mb` in bfloat16, seeded; returns the directory."""
    torch.manual_seed(0)
    layer_bytes = 2 * (3 * _HIDDEN * _MLP + 3 * _HIDDEN * _HIDDEN)
    layers = max(1, round((size_mb * 1e6 - 2 * _VOCABULARY * _HIDDEN) / layer_bytes))
    config = LlamaConfig(
        hidden_size=_HIDDEN,
        intermediate_size=_MLP,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=_VOCABULARY,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(directory, max_shard_size=f"{max(1, size_mb // _SHARDS)}MB")
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(directory)
    return directory
