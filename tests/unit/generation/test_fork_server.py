"""A fork server and its launchers, as processes: what is started through it is like a new Python, only sooner."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from rag_stack.generation import fork_start
from rag_stack.generation.birth import Birth, born
from rag_stack.generation.fork_start import LAUNCH, ForkServerProcess, platform_environment
from rag_stack.generation.launcher import FORKED, PYTHON, SOCKET, STANDBY

# Neither the launcher nor a new Python would have it.
MODULE = "colorsys"
WAIT_S = 60.0
TELL = """
import json, os, sys
told = {"pid": os.getpid(), "preloaded": "colorsys" in sys.modules, "argv": sys.argv, "cwd": os.getcwd()}
told |= {"env": dict(os.environ), "threads": len(os.listdir("/proc/self/task"))}
print(json.dumps(told), flush=True)
"""


@pytest.fixture
def server() -> Iterator[ForkServerProcess]:
    yield from serving(MODULE)


def serving(*modules: str, more: Mapping[str, str] | None = None) -> Iterator[ForkServerProcess]:
    process = ForkServerProcess(f"rag-stack-test-{uuid.uuid4().hex}", modules, environ=environment(), more=more)
    yield process
    process.stop()


def environment(**more: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in (SOCKET, STANDBY, FORKED)}
    return known | {PYTHON: sys.executable} | more


def launched(name: str, code: str, *, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(LAUNCH), "-c", textwrap.dedent(code), "--multiprocessing-fork"],
        env={**(env or environment()), SOCKET: name},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told_by(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def test_what_is_launched_has_the_imports_and_else_all_that_is_its_own(
    server: ForkServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = launched(server.name, TELL, env=environment(MINE="1"))
    told = told_by(process)
    assert process.wait(WAIT_S) == 0
    assert told["preloaded"]
    assert told["pid"] != process.pid
    assert told["argv"] == ["-c", "--multiprocessing-fork"]
    assert told["cwd"] == str(tmp_path)
    assert told["env"]["MINE"] == "1"
    birth = born(told["env"])
    assert birth is not None
    assert birth.began_s <= birth.ended_s <= birth.forked_s
    # Not what the server alone needs.
    assert "OPENBLAS_NUM_THREADS" not in told["env"]


@pytest.mark.parametrize(("code", "status"), [("import sys; sys.exit(7)", 7), ("raise ValueError", 1), ("pass", 0)])
def test_it_ends_with_the_status_of_what_it_launched(server: ForkServerProcess, code: str, status: int) -> None:
    assert launched(server.name, code).wait(WAIT_S) == status


def test_a_child_of_its_own_is_forked_too(server: ForkServerProcess) -> None:
    code = f"""
        import multiprocessing.spawn, os, subprocess
        program = os.fsdecode(multiprocessing.spawn.get_executable())
        raise SystemExit(subprocess.run([program, "-c", {TELL!r}, "--multiprocessing-fork"]).returncode)
    """
    process = launched(server.name, code)
    birth = born(told_by(process)["env"])
    assert process.wait(WAIT_S) == 0
    assert birth is not None
    assert birth.parent is not None
    assert birth.parent.forked_s <= birth.launched_s


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_what_was_launched(server: ForkServerProcess, number: signal.Signals) -> None:
    code = f"""
        import signal, sys, time
        signal.signal({int(number)}, lambda *_: sys.exit(9))
        {TELL.strip().replace(chr(10), chr(10) + " " * 8)}
        time.sleep(600)
    """
    process = launched(server.name, code)
    told_by(process)
    process.send_signal(number)
    assert process.wait(WAIT_S) == 9


def test_it_can_be_named(server: ForkServerProcess) -> None:
    """As vLLM names its processes, and load tests find them."""
    code = TELL.replace("import json", "import setproctitle; setproctitle.setproctitle('VLLM::Named'); import json")
    process = launched(server.name, code + "\nsys.stdin.readline()")
    pid = told_by(process)["pid"]
    assert "VLLM::Named" in Path(f"/proc/{pid}/cmdline").read_text()
    process.communicate("\n", timeout=WAIT_S)


def test_one_that_is_killed_tells_its_starter_so(server: ForkServerProcess) -> None:
    process = launched(server.name, TELL + "\nimport time; time.sleep(600)")
    os.kill(told_by(process)["pid"], signal.SIGKILL)
    assert process.wait(WAIT_S) == -signal.SIGKILL


def test_it_ends_with_the_launcher(server: ForkServerProcess) -> None:
    process = launched(server.name, TELL + "\nimport time; time.sleep(600)")
    forked = psutil.Process(told_by(process)["pid"])
    process.kill()
    assert psutil.wait_procs([forked], timeout=WAIT_S)[1] == []


def test_it_ends_with_whoever_started_the_launcher(server: ForkServerProcess) -> None:
    """Also when that was killed, and could not say so."""
    code = f"""
        import subprocess
        subprocess.run([{str(LAUNCH)!r}, "-c", {TELL + "import time; time.sleep(600)"!r}, "--multiprocessing-fork"])
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment() | {SOCKET: server.name},
        stdout=subprocess.PIPE,
        text=True,
    )
    forked = psutil.Process(told_by(starter)["pid"])
    starter.kill()
    starter.wait(WAIT_S)
    assert psutil.wait_procs([forked], timeout=WAIT_S)[1] == []


def test_it_outlives_the_server(server: ForkServerProcess) -> None:
    process = launched(server.name, TELL + "\nsys.stdin.readline()")
    forked = psutil.Process(told_by(process)["pid"])
    server.stop()
    assert forked.is_running()
    process.communicate("\n", timeout=WAIT_S)
    assert psutil.wait_procs([forked], timeout=WAIT_S)[1] == []


def test_a_variable_that_imports_have_read_must_be_the_same(server: ForkServerProcess) -> None:
    process = launched(server.name, TELL, env=environment(VLLM_TARGET_DEVICE="another"))
    told = told_by(process)
    _, printed = process.communicate(timeout=WAIT_S)
    assert not told["preloaded"]
    assert FORKED not in told["env"]
    assert "VLLM_TARGET_DEVICE changed" in printed


@pytest.mark.parametrize("value", [None, "platform's", "another"])
def test_what_the_platform_adds_may_be_there_or_not(value: str | None) -> None:
    server = next(servers := serving(MODULE, more={"VLLM_ADDED": "platform's"}))
    env = environment() | ({} if value is None else {"VLLM_ADDED": value})
    assert told_by(launched(server.name, TELL, env=env))["preloaded"] == (value != "another")
    assert list(servers) == []


def test_it_tells_when_it_forks(server: ForkServerProcess) -> None:
    assert server.wait_ready(timeout_s=WAIT_S)
    server.stop()
    assert not server.wait_ready(timeout_s=WAIT_S)


def test_without_a_server_it_is_a_python(server: ForkServerProcess) -> None:
    server.stop()
    process = launched(server.name, TELL)
    told = told_by(process)
    _, printed = process.communicate(timeout=WAIT_S)
    assert told["pid"] == process.pid
    assert "a whole Python starts instead" in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()", "threads"),
        ("raise ValueError('no such library')", "no such library"),
    ],
)
def test_imports_that_make_a_fork_unsafe_end_the_server(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unsafe_to_fork.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    server = next(servers := serving("unsafe_to_fork"))
    ending = psutil.Process(server.pid)
    process = launched(server.name, TELL)
    assert told_by(process)["pid"] == process.pid
    assert process.wait(WAIT_S) == 0
    assert psutil.wait_procs([ending], timeout=WAIT_S)[1] == []
    assert told in capfd.readouterr().err
    assert list(servers) == []


def test_a_ray_worker_comes_from_the_standby_of_its_node(server: ForkServerProcess, tmp_path: Path) -> None:
    script = tmp_path / "default_worker.py"
    script.write_text(TELL)
    prefix, node = server.name[:-4], server.name[-4:]
    answer = subprocess.run(
        [str(LAUNCH), str(script), f"--node-id={node}"],
        env=environment(**{STANDBY: prefix + "{node}"}),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    told = json.loads(answer.stdout)
    assert told["preloaded"]
    assert told["argv"] == [str(script), f"--node-id={node}"]
    assert told["env"][SOCKET] == server.name


def test_any_other_command_is_for_python(server: ForkServerProcess) -> None:
    command = [str(LAUNCH), "-c", "print('whole')"]
    answer = subprocess.run(
        command, env=environment() | {SOCKET: server.name}, capture_output=True, text=True, check=True
    )
    assert (answer.stdout, answer.stderr) == ("whole\n", "")


def test_nothing_is_started_where_it_is_not_asked_for() -> None:
    environ: dict[str, str] = {}
    assert fork_start.start(environ) is None
    assert environ == {}


def test_the_platform_adds_to_what_is_preloaded_already() -> None:
    named = platform_environment("cpu", {"LD_PRELOAD": "/mine.so"})["LD_PRELOAD"].split(":")
    assert "/mine.so" in named
    assert any("libgomp" in path for path in named)
    assert platform_environment("gpu", {}) == {}


def test_a_birth_is_read_as_it_was_written() -> None:
    birth = Birth(1.0, 2.0, 3.0, 4.0, parent=Birth(5.0, 6.0, 7.0, 8.0))
    assert born({FORKED: birth.to_text()}) == birth
    assert born({}) is None


def test_a_child_ends_with_a_launcher_that_has_not_read_its_answer() -> None:
    code = (
        "import socket; from rag_stack.generation.fork_child import _end_with_launcher\n"
        "ours, launcher = socket.socketpair(); ours.send(b'x'); launcher.close(); _end_with_launcher(ours.fileno())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
