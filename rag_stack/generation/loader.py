"""vLLM's own loader of safetensors, kept behind a thread that reads the files at the speed of the disk.

A loader that overtakes the reader faults page after page of the mapped file, and the two spoil each other's order. Held
back tensor by tensor it loads 1.2 GB from a cold page cache in 0.40 s, where the plain reader alone takes 0.35 and
vLLM's loader 0.46 (`python -m loadtests.weights`, medians, 2 cores).

vLLM takes it by its name in the worker's process, where `worker` registers it. Nothing else imports this module.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Final

from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from rag_stack.generation.weights import WEIGHTS, ReadAhead

LOAD_FORMAT: Final = "read_ahead"
# What a release may name, or leave out, and get this loader for: vLLM's default loader, with its default strategy.
REPLACES: Final = frozenset({"auto", "hf", "safetensors"})
_HEADER_SIZE_BYTES: Final = 8
# The format's own limit.
_MAX_HEADER_BYTES: Final = 100_000_000
_METADATA: Final = "__metadata__"


@register_model_loader(LOAD_FORMAT)
class ReadAheadLoader(DefaultModelLoader):  # type: ignore[misc]  # vLLM is untyped here
    """What vLLM loads by default, in the same order, each tensor once it is in the page cache."""

    def __init__(self, load_config: Any) -> None:  # noqa: ANN401
        # The name is ours; what it stands for is what vLLM finds by itself.
        own = copy(load_config)
        own.load_format = "auto"
        super().__init__(own)

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
        """Names and tensors."""
        files = sorted(Path(model_config.model).glob(f"*{WEIGHTS}"))
        ends, ahead = tensor_ends(files), ReadAhead(files)
        try:
            for name, tensor in super().get_all_weights(model_config, model):
                if name in ends:
                    ahead.wait(*ends[name])
                yield name, tensor
        finally:
            ahead.stop()


def tensor_ends(files: Sequence[Path]) -> Mapping[str, tuple[Path, int]]:
    """In which safetensors file each tensor is, and at which byte of it it ends; what has no header is left out.

    The format: 8 bytes with the header's size, little-endian, the header in JSON, the tensors.
    """
    ends: dict[str, tuple[Path, int]] = {}
    for path in files:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_HEADER_SIZE_BYTES), "little")
            header = file.read(size) if size <= _MAX_HEADER_BYTES else b""
        start = _HEADER_SIZE_BYTES + size
        try:
            tensors = {name: about for name, about in json.loads(header).items() if name != _METADATA}
            ends |= {name: (path, start + int(about["data_offsets"][1])) for name, about in tensors.items()}
        except (ValueError, TypeError, AttributeError, LookupError):
            # The loader opens it too, and says better what is wrong.
            continue
    return ends
