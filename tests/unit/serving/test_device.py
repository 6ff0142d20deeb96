"""The replica's GPU and its engine's."""

import pytest

from rag_stack.errors import DeviceMismatchError
from rag_stack.serving.device import check_same_device, device_uuid


def test_the_first_worker_shares_the_replicas_device() -> None:
    check_same_device("GPU-a", ["GPU-a", "GPU-b"])
    with pytest.raises(DeviceMismatchError, match="the GPU GPU-a, and rank 0 of the engine is on GPU-b"):
        check_same_device("GPU-a", ["GPU-b", "GPU-a"])


def test_workers_that_do_not_tell_are_refused() -> None:
    with pytest.raises(DeviceMismatchError, match="worker_cls"):
        check_same_device("GPU-a", [])


def test_on_cpus_there_is_none_to_compare() -> None:
    assert device_uuid() == ""
