"""One way to embed, in a process of its own: `python -m loadtests.embedding_arm ARM DIRECTORY`.

It reads one JSON object a line: `{"texts": [...]}` is embedded one after another, `{"memory": true}` is measured, and
the end of the input ends it. It imports no more than its arm needs, so that memory and start are those of the arm.
"""

import base64
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]

NAMES = ("torch", "torch bare", "rag_stack", "onnx mapped", "onnx int8", "openvino")


def main() -> None:
    """Load the arm, say so, and answer until the input ends."""
    name, directory = sys.argv[1], Path(sys.argv[2])
    began, began_cpu = time.perf_counter(), time.process_time()
    encode = _load(name, directory)
    encode(["warm up"])
    _say(load_s=time.perf_counter() - began, load_cpu_s=time.process_time() - began_cpu)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("memory"):
            _say(**_memory())
            continue
        began, began_cpu = time.perf_counter(), time.process_time()
        vectors = encode(asked["texts"])
        wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        _say(wall_s=wall, cpu_s=cpu, vectors=base64.b64encode(vectors.astype("<f4").tobytes()).decode())


def _load(name: str, directory: Path) -> Encode:
    match name:
        case "torch":
            from rag_stack.retrieval.torch_encoder import TorchEncoder

            encoder = TorchEncoder.load(directory, name=name, threads=1)
            return lambda texts: encoder.encode(texts)
        case "torch bare":
            return _bare(directory)
        case "rag_stack":
            from rag_stack.retrieval.embedder import Embedder

            embedder = Embedder.load(directory, name=name, digest="sha256:" + "0" * 64, threads=1)
            return lambda texts: embedder.encode(texts)
        case "onnx mapped":
            return _onnx(directory, {"session.disable_prepacking": "1"})
        case "onnx int8":
            return _onnx(directory / "int8", {})
        case "openvino":
            return _openvino(directory)
    raise SystemExit(f"{name!r} is none of {', '.join(NAMES)}")


def _bare(directory: Path) -> Encode:
    """The model's forward pass and nothing around it: tokenizers, one text a batch, mean of the tokens."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(str(directory), local_files_only=True, use_safetensors=True).eval()
    tokens = _tokens(directory)

    def one(text: str) -> Vectors:
        ids, mask = tokens(text)
        with torch.inference_mode():
            states = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
        return _unit(states.numpy().mean(axis=1))

    return lambda texts: np.concatenate([one(text) for text in texts])


def _onnx(directory: Path, settings: dict[str, str]) -> Encode:
    """The import's graph in ONNX Runtime under other settings, or another graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory.resolve()))
    graph = (directory / "onnx" / "model.onnx").read_bytes()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return _on_graph(directory, [each.name for each in session.get_inputs()], lambda feeds: session.run(None, feeds)[0])


def _openvino(directory: Path) -> Encode:
    import openvino

    # Its reader looks for weights beside the graph only.
    model = openvino.Core().read_model(directory / "beside" / "model.onnx")
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    names = [each.get_any_name() for each in compiled.inputs]
    return _on_graph(directory, names, lambda feeds: request.infer(feeds)[compiled.outputs[0]])


def _on_graph(directory: Path, names: Sequence[str], run: Callable[[dict[str, Any]], Any]) -> Encode:
    tokens = _tokens(directory)

    def one(text: str) -> Vectors:
        ids, mask = tokens(text)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return _unit(np.array(run({name: feeds[name] for name in names})))

    return lambda texts: np.concatenate([one(text) for text in texts])


def _tokens(directory: Path) -> Callable[[str], tuple[Any, Any]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(json.loads((directory / "sentence_bert_config.json").read_text())["max_seq_length"])

    def tokens(text: str) -> tuple[Any, Any]:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        return ids, np.ones_like(ids)

    return tokens


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _memory() -> dict[str, float]:
    """MB that this process holds: alone in memory of its own, and mapped from files that others can share."""
    rolled = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    kilobytes = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", rolled, re.MULTILINE)}
    own = kilobytes["Anonymous"] / 1e3 * 1.024
    return {"own_mb": own, "mapped_mb": kilobytes["Rss"] / 1e3 * 1.024 - own}


def _say(**told: float | str) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
