"""Whether a replica and its engine have the same GPU, where an index lies on it. Not run here: a GPU."""

from collections.abc import Sequence

from rag_stack.errors import DeviceMismatchError


def device_uuid() -> str:
    """The UUID of the first GPU that this process sees; empty on CPUs. Imports vLLM; begins nothing on the device."""
    from vllm.platforms import current_platform

    return "" if current_platform.is_cpu() else str(current_platform.get_device_uuid(0))


def check_same_device(own: str, workers: Sequence[str]) -> None:
    """Raise DeviceMismatchError unless rank 0, the first of the workers, has the replica's GPU."""
    if workers and workers[0] == own:
        return
    if not workers:
        raise DeviceMismatchError(
            f"the replica searches its index on the GPU {own}, and the engine's workers do not tell theirs: leave "
            "engine.worker_cls out of the release, or gpu_index"
        )
    raise DeviceMismatchError(
        f"the replica searches its index on the GPU {own}, and rank 0 of the engine is on {workers[0]}: expected one "
        "that both share. Is the placement group's first bundle one whole GPU, and is "
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES unset for the replica? Without gpu_index none of this matters"
    )
