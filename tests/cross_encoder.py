"""A cross-encoder of a few bytes, as ONNX files are made: its score grows with the words that are the query's."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "bread", "rye", "oven", "harbour", "storm", "lighthouse", "oil", "which")


def write_cross_encoder(
    directory: Path, *, max_tokens: int = 16, labels: int = 1, model: str = "onnx/model.onnx"
) -> Path:
    """`tokenizer.json` and the ONNX model. The logit is the mean of a pair's token numbers, less 5."""
    (directory / model).parent.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(max_tokens)
    tokenizer.save(str(directory / "tokenizer.json"))
    onnx.save(_graph(labels), str(directory / model))
    return directory


def write_config(directory: Path, **fields: object) -> None:
    """A config.json."""
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")


def write_bert(directory: Path, *, labels: int = 1) -> Path:
    """A BERT of random weights as transformers stores it: config.json, safetensors and a fast tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=labels,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer = Tokenizer.from_file(str(write_cross_encoder(directory, max_tokens=32) / "tokenizer.json"))
    (directory / "onnx" / "model.onnx").unlink()
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_input_names=inputs)
    fast.save_pretrained(directory)
    return directory


def _graph(labels: int) -> onnx.ModelProto:
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "tokens"]) for name in names]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", labels])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["ids"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["mean", "shift"], ["one"]),
        helper.make_node("Concat", ["one"] * labels, ["logits"], axis=1),
    ]
    shift = helper.make_tensor("shift", TensorProto.FLOAT, [1], [5.0])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], initializer=[shift])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
