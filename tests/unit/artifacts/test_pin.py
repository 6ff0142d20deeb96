"""A pin ends with its processes and not before."""

import gc
import os
import signal
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from rag_stack.artifacts.pin import Pin, is_pinned, unpinned


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pins" / "a"


def test_many_hold_a_pin_until_the_last_lets_go(path: Path) -> None:
    first, second = Pin.take(path), Pin.take(path)
    first.release()
    assert is_pinned(path)
    second.release()
    second.release()
    assert not is_pinned(path)


def test_a_pin_that_nobody_remembers_holds(path: Path) -> None:
    Pin.take(path)
    gc.collect()
    assert is_pinned(path)


def test_looking_makes_and_changes_nothing(path: Path) -> None:
    assert not is_pinned(path)
    assert not path.exists()
    pin = Pin.take(path)
    os.utime(path, (1, 1))
    assert is_pinned(path)
    other = Pin.take(path, used=False)
    other.release()
    assert path.stat().st_mtime == 1
    pin.release()
    assert path.stat().st_mtime > 1


def test_a_pin_goes_with_what_it_pinned(path: Path) -> None:
    Pin.take(path).release()
    with unpinned(path) as free:
        assert free
        assert is_pinned(path)
    assert not path.exists()
    pin = Pin.take(path)
    with unpinned(path) as free:
        assert not free
    assert path.exists()
    pin.release()


def test_a_pin_dies_with_its_process(path: Path, processes: ForkContext) -> None:
    pinned, never = processes.Event(), processes.Event()

    def hold() -> None:
        Pin.take(path)
        pinned.set()
        never.wait()

    holder = processes.Process(target=hold)
    holder.start()
    assert pinned.wait(30)
    assert is_pinned(path)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    assert not is_pinned(path)


def test_who_takes_a_pin_during_an_eviction_gets_it_afterwards(path: Path, processes: ForkContext) -> None:
    taking, held = processes.Event(), processes.Event()
    done = processes.Event()

    def take() -> None:
        taking.set()
        Pin.take(path)
        held.set()
        done.wait(30)

    taker = processes.Process(target=take)
    with unpinned(path) as free:
        assert free
        taker.start()
        assert taking.wait(30)
        assert not held.is_set()
    assert held.wait(30)
    assert is_pinned(path)
    done.set()
    taker.join(30)
    assert not is_pinned(path)


def test_a_reader_who_cannot_write_shares_a_pin(ordinary_directory: Path) -> None:
    pins = ordinary_directory / "pins"
    pins.mkdir()
    (pins / "a").touch()
    (pins / "a").chmod(0o444)
    pins.chmod(0o555)
    pin = Pin.take(pins / "a")
    assert is_pinned(pins / "a")
    # Nothing is there to hold: nobody who could evict anything has made it.
    Pin.take(pins / "b").release()
    assert not (pins / "b").exists()
    pin.release()
    assert not is_pinned(pins / "a")
    pins.chmod(0o755)
