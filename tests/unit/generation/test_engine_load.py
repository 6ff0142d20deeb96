from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from rag_stack.generation.engine_load import EngineLoad, Held


@dataclass
class Stats:
    """The fields of vLLM's SchedulerStats that are read."""

    num_running_reqs: int
    num_waiting_reqs: int
    kv_cache_usage: float


@dataclass
class Manager:
    stat_loggers: list[Any] = field(default_factory=list)


def test_it_knows_nothing_before_the_first_step_and_then_the_newest_of_each_core() -> None:
    load = EngineLoad()
    assert load.now() is None
    load.record(Stats(3, 1, 0.25), None, engine_idx=0)
    load.record(None, None, engine_idx=0)  # a step without statistics
    load.record(Stats(2, 0, 0.5), None, engine_idx=1)
    load.record(Stats(4, 1, 0.3), None, engine_idx=0)
    assert load.now() == Held(running=6, waiting=1, kv_usage=0.5)


def test_it_listens_to_an_engine_that_keeps_statistics_and_says_where_none_does() -> None:
    manager = Manager()
    load = EngineLoad()
    assert load.attach(SimpleNamespace(logger_manager=manager))
    assert manager.stat_loggers == [load]
    assert not load.attach(SimpleNamespace(logger_manager=None))
