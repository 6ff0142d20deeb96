"""Which of a loaded model's weights are pages of its files, shared by all processes of a node, and which are not.

transformers 5 with safetensors maps a file and lets the parameters alias it, as long as nothing has to be converted.
ONNX Runtime maps what a graph refers to, and keeps of it what it does not pack for the processor.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors import safe_open

from rag_stack.errors import ArtifactError

if TYPE_CHECKING:
    import torch

_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of a model, each in one of three groups.

    mapped_bytes  they alias a mapping of a file
    copied_bytes  they are in a file, in another dtype or layout, so this process has a copy of its own
    absent        no file has them, so whatever is there is not the model's: names
    """

    mapped_bytes: int
    copied_bytes: int
    absent: tuple[str, ...]


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model. Raises ArtifactError for pickled weights, whether or not others are there too.

    A loader may take either, and a pickle can run code when it is loaded.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    if pickles := [path.name for path in files if path.suffix in _PICKLES]:
        raise ArtifactError(
            f"{str(directory)!r} holds pickled weights ({', '.join(pickles[:3])}), which can run code when they are "
            "loaded: convert them to safetensors and import the model again"
        )
    if weights := [path for path in files if path.suffix == ".safetensors"]:
        return weights
    raise ArtifactError(
        f"{str(directory)!r} holds no safetensors; import the model again with `rag-stack model import`"
    )


def mapped_bytes(files: list[Path]) -> int:
    """How much of these files this process has mapped, in whole pages. Linux."""
    return sum(stop - start for start, stop in _mappings(files))


def stored_bytes(files: list[Path]) -> int:
    """How large these files are."""
    return sum(path.stat().st_size for path in files)


def inspect(model: "torch.nn.Module", files: list[Path]) -> Weights:
    """Sort a loaded model's parameters by where their bytes are. Linux; reads the headers of its files."""
    ranges = list(_mappings(files))
    stored = {name for path in files for name in _names(path)}
    mapped = copied = 0
    absent = []
    # Tied parameters are one tensor under two names, and given once.
    for name, tensor in model.named_parameters():
        if any(start <= tensor.data_ptr() < stop for start, stop in ranges):
            mapped += tensor.nbytes
        elif any(_same(name, other) for other in stored):
            copied += tensor.nbytes
        else:
            absent.append(name)
    return Weights(mapped, copied, tuple(absent))


def spoil(model: "torch.nn.Module", names: tuple[str, ...]) -> None:
    """Make parameters NaN, so that whatever depends on them shows it."""
    import torch

    with torch.no_grad():
        for name in names:
            model.get_parameter(name).fill_(torch.nan)


def _names(path: Path) -> list[str]:
    with safe_open(str(path), framework="np") as file:
        return list(file.keys())


def _same(name: str, stored: str) -> bool:
    """Whether a parameter of a sentence-transformers module, as `0.model.NAME`, is the tensor NAME or `bert.NAME`."""
    bare = re.sub(r"^\d+\.((auto_)?model\.)?", "", name)
    return stored == bare or stored.endswith(f".{bare}")


def _mappings(files: list[Path]) -> Iterator[tuple[int, int]]:
    """The addresses at which this process has these files mapped: start and stop."""
    # As /proc shows it, a path stands in one line.
    paths = {str(path.resolve()).replace("\n", "\\012") for path in files}
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in paths:
            start, stop = fields[0].split("-")
            yield int(start, 16), int(stop, 16)
