"""The rollout in gauges."""

from dataclasses import replace

from rag_stack.metrics import ROLLOUT_SHARE, ROLLOUT_STATE, MemoryRecorder
from rag_stack.releases.plan import steady
from rag_stack.serving.operator_report import tell_plan

STATES = ("steady", "canary", "promoting", "rolling_back")


def test_one_state_is_1_and_the_others_are_0() -> None:
    recorder = MemoryRecorder()
    plan = steady("a", now_s=0.0)
    tell_plan(plan, recorder)
    tell_plan(replace(plan, new="b", state="promoting", share=0.25), recorder)
    told = {state: recorder.values(ROLLOUT_STATE, {"state": state}) for state in STATES}
    assert told == {"steady": [1.0, 0.0], "canary": [0.0, 0.0], "promoting": [0.0, 1.0], "rolling_back": [0.0, 0.0]}
    assert recorder.values(ROLLOUT_SHARE) == [0.0, 0.25]


def test_without_a_plan_nothing_is_told() -> None:
    recorder = MemoryRecorder()
    tell_plan(None, recorder)
    assert recorder.values(ROLLOUT_SHARE) == []
