"""How a cluster's CPUs and GPUs are shared between those who cut and those who embed."""

import pytest

from rag_stack.jobs.ray_session import capacity_of


@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 64, 1000])
def test_all_that_embed_and_one_that_cuts_have_room(cpus: int, gpus: int) -> None:
    capacity = capacity_of(cpus=cpus, gpus=gpus)
    assert capacity.actors * capacity.actor_cpus + capacity.cut_cpus <= cpus
    assert capacity.actors * capacity.actor_gpus <= gpus
    # Ray Data would run both in one process otherwise.
    assert (capacity.cut_cpus, 0.0) != (capacity.actor_cpus, capacity.actor_gpus)


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
def test_a_ray_of_our_own_has_an_actor_for_each_worker(workers: int) -> None:
    capacity = capacity_of(cpus=workers + max(1, workers // 2), gpus=0, most=workers)
    assert (capacity.actors, capacity.actor_cpus) == (workers, 1.0)
