"""GGUF to the bfloat16 safetensors that vLLM reads."""

from pathlib import Path
from typing import Any, Final

from rag_stack.errors import ArtifactError

_MAGIC: Final = b"GGUF"


def check_gguf(source: Path) -> None:
    """Raise ArtifactError, naming the file, unless it is a whole GGUF file."""
    try:
        with source.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as exc:
        raise ArtifactError(f"cannot read {str(source)!r}: {exc.strerror or exc}; check the path") from exc
    if start != _MAGIC:
        what = f"begins with {start!r}" if start else "is empty"
        raise ArtifactError(f"{str(source)!r} is not a GGUF file: it {what}, expected {_MAGIC!r}; download it again")
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(str(source)).tensors
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"{str(source)!r} is a damaged or truncated GGUF file ({exc}); download it again") from exc
    if not tensors:
        raise ArtifactError(f"{str(source)!r} is a damaged or truncated GGUF file (no tensors); download it again")


def convert_gguf(source: Path, *, target: Path) -> None:
    """Write a GGUF generator as bfloat16 safetensors, with config, tokenizer and chat template, into `target`.

    Needs memory for the whole model. Blocking, from seconds to minutes. Raises ArtifactError.
    """
    check_gguf(source)
    # Imported here: it takes seconds, and only a conversion needs it.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    directory, name = str(source.absolute().parent), source.name
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        # The weights are plain now; with these left on, the saved model would claim to be quantized.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.is_quantized, model.hf_quantizer = False, None
        model.save_pretrained(str(target))
        AutoTokenizer.from_pretrained(directory, gguf_file=name).save_pretrained(str(target))
    except Exception as exc:  # transformers raises whatever its model classes raise
        raise ArtifactError(
            f"transformers cannot convert {str(source)!r}: {type(exc).__name__}: {exc}; "
            "import the model's safetensors directory instead"
        ) from exc
