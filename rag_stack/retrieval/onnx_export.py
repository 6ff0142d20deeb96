"""A torch module becomes onnx/model.onnx in its model's directory. What only an import needs: torch, onnxscript.

A weight that stands in the directory's safetensors as the graph wants it is referred to there, so that the graph adds
little to the artifact and both runtimes map the same pages.
"""

import hashlib
import json
import logging
import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rag_stack.retrieval.onnx_session import INPUTS, ONNX_FILE

if TYPE_CHECKING:
    import torch

_DATA_FILE: Final = ONNX_FILE.with_name("model.onnx.data")
# What is smaller stays in the graph.
_SMALL_BYTES: Final = 1024
# Of a safetensors file: the length of its header.
_LENGTH_BYTES: Final = 8
_ALIGNED: Final = 64


def export_graph(
    module: "torch.nn.Module",
    directory: Path,
    *,
    inputs: Sequence[str],
    output: str,
    metadata: Mapping[str, str],
) -> None:
    """Write the graph of a module that takes token tensors of any [n, tokens] by position. Blocking: 10 to 30 s.

    `inputs` are names that OnnxModel knows. The same module gives the same bytes. Raises ImportError without the
    exporter's packages, and whatever the exporter raises for a module that it cannot take.
    """
    import onnx_ir
    import torch

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    # One tensor given twice would be one input.
    examples = tuple(torch.ones((2, 16), dtype=torch.long) for _ in inputs)
    with torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            # As it is, so that the weights are as they are stored. The runtime optimises what it loads.
            optimize=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=[{0: batch, 1: tokens}] * len(inputs),
            verbose=False,
        )
    model: Any = program.model
    _strip(model)
    model.metadata_props.update(metadata)
    (directory / ONNX_FILE).parent.mkdir(exist_ok=True)
    _refer(model, directory)
    (directory / ONNX_FILE).write_bytes(onnx_ir.to_proto(model).SerializeToString(deterministic=True))


def by_position(
    model: "torch.nn.Module", call: Callable[[Mapping[str, "torch.Tensor"]], "torch.Tensor"]
) -> "torch.nn.Module":
    """What `call` does with the token tensors that OnnxModel knows, as the module that `export_graph` takes."""
    import torch

    class ByPosition(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            token_type_ids: torch.Tensor | None = None,
        ) -> torch.Tensor:
            given = dict(zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))
            return call({name: tensor for name, tensor in given.items() if tensor is not None})

    return ByPosition()


@dataclass(frozen=True, slots=True)
class _Place:
    """Bytes in a file, by its path inside the model's directory."""

    file: str
    offset: int


def _strip(model: Any) -> None:  # noqa: ANN401  onnx_ir is untyped here
    """Take away what tells where and by whom the graph was made: stack traces, for the most part."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()


def _refer(model: Any, directory: Path) -> None:  # noqa: ANN401
    """Let the graph's weights be those of the safetensors; those that are not there go to a file beside the graph."""
    import onnx_ir

    stored = dict(_tensors(directory))
    with (directory / _DATA_FILE).open("wb") as rest:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _SMALL_BYTES:
                continue
            content = tensor.tobytes()
            place = stored.get(_digest(content))
            if place is None:
                rest.write(b"\0" * (-rest.tell() % _ALIGNED))
                place = _Place(_DATA_FILE.as_posix(), rest.tell())
                rest.write(content)
            value.const_value = onnx_ir.ExternalTensor(
                place.file,
                place.offset,
                len(content),
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=directory,
            )
        empty = rest.tell() == 0
    if empty:
        (directory / _DATA_FILE).unlink()


def _tensors(directory: Path) -> Iterator[tuple[bytes, _Place]]:
    """Every tensor of the directory's safetensors, by the digest of its bytes."""
    for path in sorted(directory.rglob("*.safetensors")):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
            header: dict[str, Any] = json.loads(content[_LENGTH_BYTES:start])
            header.pop("__metadata__", None)
            for tensor in header.values():
                first, stop = tensor["data_offsets"]
                place = _Place(path.relative_to(directory).as_posix(), start + first)
                yield _digest(content[start + first : start + stop]), place


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself: on packages that it could use, and on names that it simplifies."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
