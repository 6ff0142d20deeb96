import contextlib
import dataclasses
import json
import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from starlette.applications import Starlette

from loadtests import overhead, report
from loadtests.arms import ArmName, RunningArm, engine_flags, wait_until_ready
from loadtests.closed_loop import Answer, LoadError, ask_all, request_body
from loadtests.overhead_figures import (
    arms_agree,
    build_report,
    equal_outputs,
    rps_vs_bare,
    tpot_vs_bare,
    unexplained_ttft_ms,
)
from loadtests.overhead_log import Cell, Log, Settings, Visit, resume
from loadtests.overhead_plot import draw
from loadtests.process_tree import ProcessTree, inherited_environment
from rag_stack.config import load_release
from tests.engine import build_engine
from tests.layer import build_layer
from tests.servers import closed_port, serve

QUESTIONS = (
    "Which oil does the lighthouse burn?",
    "When does the harbour freeze?",
    "What bread does the bakery sell?",
    "Who climbs the steps?",
    "Which storms break over the pier?",
)
SINGLE, PAIR = Cell(4, 1), Cell(4, 2)
# Burns CPU time in a process that has left its session and lost its parent, as a daemon would, then reports its id.
BURN = """
import os, signal, socket, sys, time
until = time.process_time() + 0.3
while time.process_time() < until: pass
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    s.sendall(str(os.getpid()).encode())
    s.shutdown(socket.SHUT_WR)
    s.recv(1)
signal.pause()
"""
START = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], start_new_session=True)
"""
ORPHAN = f"""
import signal, subprocess, sys
subprocess.run([sys.executable, "-c", {START!r}, {BURN!r}, sys.argv[1]])
signal.pause()
"""


@dataclass
class TinyArms:
    """Real servers around the tiny engine, ours with the real layer; remembers what was started and asked."""

    directory: Path
    answers: dict[ArmName, str] = field(default_factory=dict)
    started: list[ArmName] = field(default_factory=list)
    engines: list[Starlette] = field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, arm: ArmName) -> Iterator[RunningArm]:
        engine = build_engine()
        engine.state.answer = self.answers.get(arm)
        self.started.append(arm)
        self.engines.append(engine)
        app = build_layer(engine, self.directory / str(len(self.started))) if arm == "ours" else engine
        with serve(app) as url:
            yield RunningArm(url, 1.0, time.process_time)

    def requests(self, at: int) -> list[dict]:
        return self.engines[at].state.requests


@pytest.fixture
def arms(tmp_path: Path) -> TinyArms:
    return TinyArms(tmp_path / "stores")


def measure(arms: TinyArms, log: Log, *, rounds: int, deadline: float | None = None) -> tuple[Log, list[int]]:
    kept: list[int] = []
    log = overhead.run_rounds(
        log,
        arms,
        model="tiny",
        rounds=rounds,
        deadline=deadline,
        keep=lambda each: kept.append(each.rounds),
        tell=lambda _: None,
    )
    return log, kept


def new_log(*cells: Cell) -> Log:
    return Log(Settings("release", QUESTIONS, cells or (SINGLE, PAIR)))


class TestRounds:
    def test_every_arm_gets_the_prompts_that_our_layer_built(self, arms: TinyArms) -> None:
        log, _ = measure(arms, new_log(), rounds=2)

        ours, ray, bare = (arms.requests(at) for at in range(3))
        measured = [body for body in ours if body["max_tokens"] == 4][: len(QUESTIONS)]
        assert [body["messages"] for body in measured] == list(log.prompts)
        assert "<document" in json.dumps(log.prompts[0])
        for others in (ray, bare):
            cell = [body["messages"] for body in others if body["cache_salt"].endswith("4x1")]
            assert cell == list(log.prompts)

    def test_every_visit_has_a_prefix_cache_of_its_own_and_equal_work(self, arms: TinyArms) -> None:
        measure(arms, new_log(), rounds=2)

        salts: list[str] = []
        for at in range(len(arms.engines)):
            bodies = [body for body in arms.requests(at) if body["max_tokens"] == 4]
            assert all(body["temperature"] == 0 and body["ignore_eos"] and body["stream"] for body in bodies)
            assert len(bodies) == 2 * len(QUESTIONS)
            salts += sorted({body["cache_salt"] for body in bodies})
        assert len(salts) == len(set(salts)) == 2 * 3 * 2

    def test_the_order_turns_and_each_round_is_kept(self, arms: TinyArms) -> None:
        _, kept = measure(arms, new_log(SINGLE), rounds=3)

        assert kept == [1, 2, 3]
        places = [arms.started[at : at + 3] for at in (0, 3, 6)]
        assert places[0][0] == "ours"
        assert all(len({order[place] for order in places}) == 3 for place in range(3))

    def test_the_report_has_every_arm_cell_and_goal(self, arms: TinyArms, tmp_path: Path) -> None:
        cells = (Cell(32, 8), Cell(1, 1))
        log, _ = measure(arms, new_log(*cells), rounds=2)

        assert arms_agree(log.visits)
        target = report.write(build_report(log), draw(log), directory=tmp_path)
        written = json.loads(target.read_text())
        assert written["rounds"] == 2
        assert len(written["samples"]) == 2 * 3 * 2
        assert all(goal["value"] is not None for goal in written["goals"].values())
        assert written["arms"]["ours"]["1x1.embed_ms"] > 0
        assert written["arms"]["ours"]["32x8.tpot_ms"] > 0
        assert "1x1.tpot_ms" not in written["arms"]["ours"], "one token has no time between tokens"
        assert written["arms"]["ours"]["1x1.equal_outputs"] == 1
        assert (tmp_path / "overhead.png").read_bytes().startswith(b"\x89PNG")

    def test_a_goal_whose_cell_was_not_measured_is_missed(self, arms: TinyArms) -> None:
        log, _ = measure(arms, new_log(SINGLE), rounds=1)

        result = build_report(log)
        assert not any(goal.met for goal in result.goals.values())
        assert report.exit_code(result, arms_agree=arms_agree(log.visits)) == 1

    @pytest.mark.parametrize(("cell", "agree"), [(SINGLE, False), (PAIR, True)])
    def test_other_answers_count_only_one_request_at_a_time(self, arms: TinyArms, cell: Cell, agree: bool) -> None:
        arms.answers = {"ours": "a b c d", "ray": "a b c e", "bare": "a b c d"}
        log, _ = measure(arms, new_log(cell), rounds=1)

        assert arms_agree(log.visits) is agree
        assert equal_outputs(log.visits, cell, arm="ray") == 0
        assert equal_outputs(log.visits, cell, arm="ours") == 1

    def test_fewer_output_tokens_never_agree(self, arms: TinyArms) -> None:
        arms.answers = {"ours": "a b c", "ray": "a b c d", "bare": "a b c d"}
        log, _ = measure(arms, new_log(PAIR), rounds=1)

        assert not arms_agree(log.visits)

    def test_the_time_budget_ends_a_run_between_rounds(self, arms: TinyArms) -> None:
        log, kept = measure(arms, new_log(SINGLE), rounds=5, deadline=time.monotonic() - 1)

        assert log.rounds == 1
        assert kept == [1]
        assert build_report(log).rounds == 1


class TestLog:
    def test_a_run_continues_after_its_last_complete_round(self, arms: TinyArms, tmp_path: Path) -> None:
        first, _ = measure(arms, new_log(), rounds=1)
        first.save(tmp_path / "log.json")

        resumed = resume(tmp_path / "log.json", first.settings)
        assert resumed.visits == first.visits
        second, kept = measure(arms, resumed, rounds=2)
        assert kept == [2]
        assert arms.started == ["ours", "ray", "bare", "ray", "bare", "ours"]
        assert second.visits[: len(first.visits)] == first.visits

    def test_other_settings_do_not_continue_it(self, tmp_path: Path) -> None:
        new_log(SINGLE).save(tmp_path / "log.json")

        with pytest.raises(LoadError, match="other cells"):
            resume(tmp_path / "log.json", new_log(PAIR).settings)

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"settings": 1}'])
    def test_a_broken_log_says_what_to_do(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "log.json").write_text(content)

        with pytest.raises(LoadError, match="leave out --resume"):
            resume(tmp_path / "log.json", new_log().settings)

    def test_no_log_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(LoadError, match="leave out --resume"):
            resume(tmp_path / "absent.json", new_log().settings)


def a_visit(
    arm: ArmName,
    *,
    round_number: int,
    ttfts: list[float],
    wall_s: float,
    cell: Cell,
    total_ms: float | None = None,
) -> Visit:
    """Answers of one token, which end with it, or of four that end at `total_ms`."""
    timings = {"embed": 10.0, "search": 2.0, "prompt": 1.0, "queue": 0.0} if arm == "ours" else {}
    end, tokens = ({}, 1) if total_ms is None else (dict.fromkeys(ttfts, total_ms), 4)
    answers = [Answer(n, ttft, end.get(ttft, ttft), 100, 0, tokens, "same", timings) for n, ttft in enumerate(ttfts)]
    return Visit(
        round=round_number,
        arm=arm,
        cell=cell,
        start_s=1,
        wall_s=wall_s,
        cpu_s=1,
        client_cpu_s=0,
        answers=tuple(answers),
    )


class TestFigures:
    def test_unexplained_is_the_paired_difference_less_embed_and_search(self) -> None:
        # Questions differ far more than arms do, and rounds drift: only pairing finds 13, 14 and 15 ms.
        ray = [[100.0, 900.0, 300.0], [1100.0, 1900.0, 1300.0]]
        added = [[13.0, 14.0, 15.0], [13.0, 14.0, 15.0]]
        visits = [
            visit
            for n in range(2)
            for visit in (
                a_visit("ray", round_number=n, ttfts=ray[n], wall_s=1, cell=SINGLE),
                a_visit(
                    "ours",
                    round_number=n,
                    ttfts=[r + a for r, a in zip(ray[n], added[n], strict=True)],
                    wall_s=1,
                    cell=SINGLE,
                ),
            )
        ]
        value, (low, high) = unexplained_ttft_ms(visits, SINGLE)
        assert value == pytest.approx(2.0)
        assert (low, high) == pytest.approx((2.0, 2.0))

    def test_rates_are_compared_within_a_round(self) -> None:
        walls = {"bare": [1.0, 2.0], "ours": [1.25, 2.0]}
        visits = [
            a_visit(arm, round_number=n, ttfts=[1.0], wall_s=wall, cell=PAIR)
            for arm, each in walls.items()
            for n, wall in enumerate(each)
        ]
        value, (low, high) = rps_vs_bare(visits, PAIR)
        assert value == pytest.approx(statistics.fmean([0.8, 1.0]))
        assert low < 0.9 < high

    def test_time_an_output_token_is_compared_within_a_round(self) -> None:
        visits = [
            a_visit(arm, round_number=n, ttfts=[1.0], wall_s=1, cell=PAIR, total_ms=total)
            for n, totals in enumerate(({"bare": 31.0, "ours": 61.0}, {"bare": 31.0, "ours": 31.0}))
            for arm, total in totals.items()
        ]
        assert tpot_vs_bare(visits, PAIR)[0] == pytest.approx(1.5)

    def test_the_queries_of_a_cell_are_not_remembered_in_the_next(self, tmp_path: Path) -> None:
        release = load_release(Path(__file__).parents[3] / "releases" / "demo.yaml")
        changed = overhead.without_query_cache(release)
        assert (release.retrieval.query_cache, changed.retrieval.query_cache) == (1000, 0)
        file = tmp_path / "served.yaml"
        file.write_text(changed.model_dump_json(exclude_unset=True), encoding="utf-8")
        assert load_release(file) == changed

    def test_one_round_has_no_interval(self) -> None:
        visits = [a_visit(arm, round_number=0, ttfts=[1.0], wall_s=1, cell=PAIR) for arm in ("bare", "ours")]

        value, interval = rps_vs_bare(visits, PAIR)
        assert value == 1
        assert all(map(math.isnan, interval))


class TestClosedLoop:
    def bodies(self, count: int) -> list[dict]:
        messages = [{"role": "user", "content": "say: one two three four five"}]
        return [request_body("tiny", messages, max_tokens=3, salt="s") for _ in range(count)]

    def test_answers_come_in_the_order_of_the_questions(self, engine: Starlette, engine_url: str) -> None:
        engine.state.prompt_tokens_details = {"cached_tokens": 2}
        answers = ask_all(engine_url, self.bodies(7), concurrency=3)

        assert [answer.question for answer in answers] == list(range(7))
        assert all(0 < answer.ttft_ms <= answer.total_ms for answer in answers)
        assert {(a.output_tokens, a.cached_tokens) for a in answers} == {(3, 2)}
        assert len({answer.output_sha256 for answer in answers}) == 1

    def test_a_refused_request_is_an_error(self, engine: Starlette, engine_url: str) -> None:
        engine.state.error = (503, "no room")

        with pytest.raises(LoadError, match=r"503.*no room"):
            ask_all(engine_url, self.bodies(1), concurrency=1)

    @pytest.mark.parametrize("fault", ["fail_after_chunks", "crash_after_chunks"])
    def test_a_broken_answer_is_an_error(self, engine: Starlette, engine_url: str, fault: str) -> None:
        setattr(engine.state, fault, 1)

        with pytest.raises(LoadError):
            ask_all(engine_url, self.bodies(1), concurrency=1)

    def test_nobody_there_is_an_error(self) -> None:
        with pytest.raises(LoadError, match="ConnectError"):
            ask_all(f"http://127.0.0.1:{closed_port()}", self.bodies(2), concurrency=2)


class TestProcessTree:
    def test_an_orphan_of_another_session_is_counted_and_stopped(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(60)
            port = str(listener.getsockname()[1])
            tree = ProcessTree(
                [sys.executable, "-c", ORPHAN, port], environment=inherited_environment(), log=tmp_path / "log"
            )
            try:
                connection, _ = listener.accept()
                with connection:
                    orphan = psutil.Process(int(connection.recv(20)))
                    assert orphan.pid in {process.pid for process in tree.members()}
                    assert os.getpid() not in {process.pid for process in tree.members()}
                    assert tree.cpu_seconds() >= 0.3
            finally:
                tree.stop(grace_s=0)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert tree.members() == []

    def test_a_server_that_ends_while_starting_is_an_error_with_its_last_words(self, tmp_path: Path) -> None:
        tree = ProcessTree(
            [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"],
            environment=inherited_environment(),
            log=tmp_path / "log",
        )
        try:
            with pytest.raises(LoadError, match=r"status 3[^$]*no such model"):
                wait_until_ready(f"http://127.0.0.1:{closed_port()}/health", tree, timeout_s=60)
        finally:
            tree.stop()


class TestCommandLine:
    def test_engine_settings_become_flags(self) -> None:
        settings = {
            "max_model_len": 8192,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "seed": None,
            "override_generation_config": {"temperature": 0.0},
            "middleware": ["a", "b"],
        }
        assert engine_flags(settings) == [
            *("--max-model-len", "8192", "--enforce-eager", "--no-enable-prefix-caching"),
            *("--override-generation-config", '{"temperature": 0.0}', "--middleware", "a", "b"),
        ]

    def test_what_cannot_be_measured_has_an_exit_code_of_its_own(self, tmp_path: Path) -> None:
        assert overhead.main(["--release", str(tmp_path / "absent.yaml")]) == 3

    @pytest.mark.parametrize("cells", ["32", "0x1", "1x1,1x1", ""])
    def test_a_wrong_cell_is_refused(self, cells: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            overhead.main(["--cells", cells])
        assert "--cells" in capsys.readouterr().err

    def test_the_questions_are_64_and_distinct(self) -> None:
        questions = overhead.QUESTIONS.read_text(encoding="utf-8").splitlines()

        assert len(questions) == len(set(questions)) == 64
        assert all(question.endswith("?") for question in questions)

    def test_the_table_shows_every_arm(self, arms: TinyArms, capsys: pytest.CaptureFixture[str]) -> None:
        log, _ = measure(arms, new_log(SINGLE), rounds=2)
        overhead.show(log, build_report(log), agree=arms_agree(log.visits))

        printed = capsys.readouterr().out
        assert all(arm in printed for arm in ("ours", "ray", "bare", "router hop", "unexplained"))
        assert "MISSED" in printed

    def test_disagreement_wins_over_goals(self) -> None:
        visits = [a_visit(arm, round_number=0, ttfts=[1.0], wall_s=1, cell=SINGLE) for arm in ("ours", "ray", "bare")]
        altered = dataclasses.replace(visits[0].answers[0], output_sha256="other")
        visits[0] = dataclasses.replace(visits[0], answers=(altered,))
        log = dataclasses.replace(new_log(SINGLE), visits=tuple(visits))
        assert report.exit_code(build_report(log), arms_agree=arms_agree(log.visits)) == 2
