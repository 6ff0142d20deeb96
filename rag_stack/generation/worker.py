"""vLLM's own worker, timed: which process started when, and what each step from the device to the warm-up took.

vLLM takes it by name, through its `worker_cls` setting, in the worker's process. Nothing else imports this module.
"""

import multiprocessing
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from rag_stack.generation.birth import born
from rag_stack.generation.engine_settings import loader_name, weight_bytes
from rag_stack.generation.loader import LOAD_FORMAT, REPLACES
from rag_stack.timeline import Timeline, process_start


def _platform_worker() -> type[Any]:
    """The class that vLLM itself takes on this platform, whose modules alone are imported."""
    if current_platform.is_cpu():
        name = "vllm.v1.worker.cpu_worker.CPUWorker"
    elif current_platform.is_xpu():
        name = "vllm.v1.worker.xpu_worker.XPUWorker"
    else:
        name = "vllm.v1.worker.gpu_worker.Worker"
    return cast(type[Any], resolve_obj_by_qualname(name))


class TimedWorker(_platform_worker()):  # type: ignore[misc]  # vLLM is untyped here
    """A worker that does what its base class does, and can say how long it took."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self._timeline = Timeline(process="worker")
        with self._timeline.time("set up worker"):
            super().__init__(*arguments, **options)

    def init_device(self) -> None:
        """Open the device and join the other ranks."""
        with self._timeline.time("open device"):
            super().init_device()

    def load_model(self, *arguments: object, **options: object) -> None:
        """Bring every tensor into the engine, behind a reader of the files unless the release chose another way."""
        chosen = self.load_config
        if (
            chosen.load_format in REPLACES
            and not chosen.safetensors_load_strategy
            and not chosen.model_loader_extra_config
        ):
            chosen.load_format = LOAD_FORMAT
        loading = Timeline()
        with loading.time(""):
            super().load_model(*arguments, **options)
        (span,) = loading.spans()
        self._timeline.add(
            "load weights",
            span.start_s,
            span.end_s,
            kind="models",
            size_bytes=weight_bytes(Path(self.model_config.model)) // self.parallel_config.world_size,
            source=loader_name(self.load_config),
        )

    def determine_available_memory(self) -> int:
        """Run the model once, to see what memory it leaves; on a CPU this is the warm-up too."""
        with self._timeline.time("profile memory"):
            return int(super().determine_available_memory())

    def initialize_from_config(self, *arguments: object, **options: object) -> None:
        """Allocate the KV cache."""
        with self._timeline.time("allocate KV cache"):
            super().initialize_from_config(*arguments, **options)

    def compile_or_warm_up_model(self) -> object:
        """Compile, capture graphs, warm up."""
        with self._timeline.time("warm up engine"):
            return super().compile_or_warm_up_model()

    def device_uuid(self) -> str:
        """The UUID of this worker's GPU, as its driver has it; empty on CPUs."""
        if current_platform.is_cpu():
            return ""
        return str(current_platform.get_device_uuid(self.device.index or 0))

    def start_report(self) -> dict[str, Any]:
        """Its spans so far, and the processes from its own upwards with their starts: plain values.

        `birth` is in it for a process that a fork server forked.
        """
        processes = []
        parent = multiprocessing.parent_process()
        for pid in (os.getpid(), os.getppid() if parent is None or parent.pid is None else parent.pid):
            with suppress(OSError):  # a parent that has ended, or that is another user's
                processes.append({"pid": pid, "started_s": process_start(pid)})
        birth = born()
        spans = [span.to_wire() for span in self._timeline.spans()]
        return {"spans": spans, "processes": processes, **({"birth": asdict(birth)} if birth else {})}
