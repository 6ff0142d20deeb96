"""One actor of the weights benchmark: a process with vLLM imported that loads a model on command.

Reads one JSON command a line and answers with one JSON object a line. Loading is vLLM's own model loader, as the
engine's worker calls it, and a load ends when every tensor is in the model's parameters, on the device. What is done
with them next, packing them anew for kernels, moves nothing from store or disk and is timed apart.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from loadtests.backed_memory import back
from loadtests.weights_copy import copied, synchronize
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.generation.loader import LOAD_FORMAT
from rag_stack.generation.weights import ReadAhead, read_ahead
from rag_stack.metrics import MemoryRecorder


class Actor:
    """A vLLM configuration and the ways to fill a model on a device with it."""

    def __init__(self, directory: Path, device: torch.device, *, port: int) -> None:
        self._device = device
        arguments = EngineArgs(
            model=str(directory), enforce_eager=True, dtype="bfloat16", max_model_len=512, use_tqdm_on_load=False
        )
        self._config: VllmConfig = arguments.create_engine_config()
        with set_current_vllm_config(self._config):
            if device.type != "cpu":
                torch.accelerator.set_device_index(device.index or 0)
            backend = "gloo" if device.type == "cpu" else "nccl"
            init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, backend=backend)
            ensure_model_parallel_initialized(1, 1)

    def load(self, directory: Path, *, strategy: str | None, load_format: str = "auto") -> dict[str, Any]:
        """Fill a new model from a directory; seconds until every tensor is in it, and a sum over all of them."""
        self._config.model_config.model = str(directory)
        self._config.load_config.safetensors_load_strategy = strategy
        self._config.load_config.load_format = load_format
        with set_current_vllm_config(self._config), set_default_torch_dtype(torch.bfloat16):
            with self._device:
                model = initialize_model(vllm_config=self._config, model_config=self._config.model_config)
            get_model_loader(self._config.load_config).load_weights(model, self._config.model_config)
            synchronize(self._device)
            loaded = _now()
            checksum = _checksum(model)
            packing_at = time.perf_counter()
            process_weights_after_loading(model, self._config.model_config, self._device)
            synchronize(self._device)
            packed_s = time.perf_counter() - packing_at
        self._config.compilation_config.static_forward_context.clear()
        del model
        gc.collect()
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()
        return {"loaded": loaded, "checksum": checksum, "packed_s": packed_s}

    def ours(self, *, root: str, cache: str, name: str, version: str, digest: str) -> dict[str, Any]:
        """What a replica and its engine's worker do: the artifact local, read ahead, and our loader behind it."""
        tiers = open_tiers(ArtifactsConfig(root=root, cache=Path(cache)), MemoryRecorder())
        local = tiers.ensure_local(tiers.resolve("models", name, version, digest=digest))
        ahead = read_ahead(local.path, {})
        try:
            return {**self.load(local.path, strategy=None, load_format=LOAD_FORMAT), "source": local.source}
        finally:
            ahead.join()
            local.pin.release()


def _checksum(model: torch.nn.Module) -> int:
    """Over the bits of every parameter, so that two loads compare exactly."""
    total = 0
    for parameter in model.parameters():
        total += int(parameter.detach().contiguous().view(torch.int16).sum(dtype=torch.int64))
    return total


def sequential(directory: Path) -> dict[str, Any]:
    """The fastest plain reader of the same files: nothing is kept."""
    ReadAhead(sorted(directory.glob("*.safetensors"))).join()
    return {"loaded": _now(), "checksum": None, "packed_s": 0.0}


def _copied(directory: Path, device: torch.device) -> dict[str, Any]:
    copied(directory, device)
    return {"loaded": _now(), "checksum": None, "packed_s": 0.0}


def _io() -> dict[str, int]:
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return {name: int(value) for name, value in (line.split(": ") for line in text.splitlines())}


def _now() -> tuple[float, float]:
    """The wall's clock, and this process's CPU time."""
    return time.perf_counter(), time.process_time()


@contextmanager
def _measured(reply: dict[str, Any], directory: Path) -> Iterator[None]:
    # The engine's own copy, and the page cache.
    back(2 * sum(path.stat().st_size for path in directory.iterdir()), directory)
    io, began = _io(), _now()
    yield
    # Without the packing, which is not asked about, and the checksum.
    reply["seconds"], reply["cpu_s"] = (end - start for start, end in zip(began, reply.pop("loaded"), strict=True))
    reply["disk_bytes"] = _io()["read_bytes"] - io["read_bytes"]


def main() -> None:
    """Serve commands until the input ends."""
    directory, port, device = Path(sys.argv[1]), int(sys.argv[2]), torch.device(sys.argv[3])
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    actor = Actor(directory, device, port=port)
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "vllm": lambda path, strategy=None: actor.load(Path(path), strategy=strategy),
        "ours": actor.ours,
        "sequential": lambda path: sequential(Path(path)),
        "copied": lambda path: _copied(Path(path), device),
    }
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        reply: dict[str, Any] = {}
        with _measured(reply, directory):
            reply.update(commands[command.pop("do")](**command))
        print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    main()
