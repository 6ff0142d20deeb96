"""How often a client hears that its connection lives."""

import pytest

from rag_stack.api.held_answer import beat_s, quiet_s


@pytest.mark.parametrize(
    ("told", "every_s", "silent_s"),
    [
        (b"600", 10.0, 480.0),
        (b"10", 10 / 3, 8.0),
        (b"5", 5 / 3, 4.0),
        (b"0.1", 1.0, 1.0),
        (b"0", 10.0, 10.0),
        (b"soon", 10.0, 10.0),
    ],
)
def test_a_client_is_heard_out_on_how_long_it_waits(told: bytes, every_s: float, silent_s: float) -> None:
    scope = {"headers": [(b"x-stainless-read-timeout", told)]}
    assert beat_s(scope, 10.0) == pytest.approx(every_s)
    assert quiet_s(scope, 10.0) == pytest.approx(silent_s)


@pytest.mark.parametrize("told", [b"0.001", b"0.1", b"1"])
def test_no_client_makes_the_heart_beat_faster_than_once_a_second(told: bytes) -> None:
    assert beat_s({"headers": [(b"x-stainless-read-timeout", told)]}, 10.0) >= 1.0
