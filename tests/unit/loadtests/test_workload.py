"""A workload's trace, what its figures are made of, and a run of each kind against a real server."""

import json
from collections import Counter
from pathlib import Path

import pytest

from loadtests import workload_plot
from loadtests.closed_loop import LoadError
from loadtests.scripted_engine import Script, ScriptedEngine
from loadtests.streamed import Streamed
from loadtests.workload import main
from loadtests.workload_figures import Run, Slo, build_report, errors, quantile, summarise
from loadtests.workload_load import Asked
from loadtests.workload_trace import Shape, Topic, generate, read_topics, read_trace, write_trace
from tests.servers import closed_port, serve

TOPICS = tuple(Topic(f"topic {n}", " ".join(f"word{n}_{m}" for m in range(40))) for n in range(50))


def came(*text_ms: float, problem: str = "", status: int = 200, cached: int = 0) -> Streamed:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": len(text_ms),
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return Streamed(
        status,
        tuple(text_ms),
        total_ms=text_ms[-1] if text_ms else 5.0,
        usage=usage,
        problem=problem,  # type: ignore[arg-type]
    )


def asked(outcome: Streamed) -> Asked:
    return Asked("session", 0, 0.0, "?", 8, outcome)


def test_the_same_seed_gives_the_same_trace_and_another_one_does_not(tmp_path: Path) -> None:
    shape = Shape(requests=60, seconds=1e9, turns=2.5, repeats=0.3)
    sessions = generate(shape, TOPICS)
    assert generate(shape, TOPICS) == sessions
    assert generate(Shape(requests=60, seconds=1e9, turns=2.5, repeats=0.3, seed=1), TOPICS) != sessions
    write_trace(tmp_path / "trace.jsonl", sessions, shape)
    assert read_trace(tmp_path / "trace.jsonl") == sessions


def test_it_is_bounded_in_count_and_time() -> None:
    many = generate(Shape(requests=70, seconds=1e9, turns=4), TOPICS)
    assert sum(len(session.turns) for session in many) == 70
    short = generate(Shape(requests=10_000, seconds=20.0, rate=3.0), TOPICS)
    assert max(session.at_s for session in short) < 20.0
    assert 40 <= len(short) <= 80  # 60 are to be expected


def test_no_question_is_asked_twice_unless_that_is_wanted() -> None:
    def questions(shape: Shape, topics: tuple[Topic, ...] = TOPICS) -> list[str]:
        return [turn.question for session in generate(shape, topics) for turn in session.turns]

    unique = questions(Shape(requests=500, seconds=1e9))
    assert len(set(unique)) == 500
    tiny = questions(Shape(requests=100, seconds=1e9, spread=0.0), (Topic("t", "one two"),))
    assert len(set(tiny)) == 100
    repeated = questions(Shape(requests=500, seconds=1e9, repeats=0.5))
    assert 200 <= len(set(repeated)) <= 300


def test_some_documents_are_asked_about_more_than_others() -> None:
    def most_asked(zipf: float) -> int:
        sessions = generate(Shape(requests=1000, seconds=1e9, zipf=zipf), TOPICS)
        counts = Counter(turn.document for session in sessions for turn in session.turns)
        return counts.most_common(1)[0][1]

    assert most_asked(1.0) > 150  # 1 / (1 + 1/2 + ... + 1/50) of 1000 is 222
    assert most_asked(0.0) < 50


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    for text in ("", "{}", "[1]", '{"format": 2}', '{"format": 1}\n{"name": "x"}'):
        wrong.write_text(text)
        with pytest.raises(LoadError, match=r"wrong\.jsonl"):
            read_trace(wrong)
    with pytest.raises(LoadError, match="--write-trace"):
        read_trace(tmp_path / "none.jsonl")


def test_topics_come_from_a_folder_from_json_lines_or_from_python(tmp_path: Path) -> None:
    (tmp_path / "lamp.txt").write_text("It burns.")
    assert read_topics(tmp_path) == (Topic("lamp", "It burns."),)
    lines = tmp_path / "topics.jsonl"
    lines.write_text('{"title": "a", "text": "b"}\n{"_id": "7", "text": "c"}\n')
    assert read_topics(lines) == (Topic("a", "b"), Topic("7", "c"))
    assert len(read_topics(None)) > 50
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="holds no documents"):
        read_topics(tmp_path / "empty")


def test_an_answer_is_good_when_it_keeps_both_bounds() -> None:
    slo = Slo(100.0, 10.0)
    assert slo.keeps(asked(came(90.0, 99.0, 110.0)))
    assert not slo.keeps(asked(came(101.0, 102.0)))
    assert not slo.keeps(asked(came(90.0, 101.0)))
    assert slo.keeps(asked(came(100.0)))
    assert not slo.keeps(asked(came(90.0, 91.0, problem="cut off")))


def test_the_figures_of_a_run() -> None:
    answers = [came(10.0, 20.0, 40.0, cached=50), came(30.0, 35.0), came(problem="refused", status=429)]
    run = Run([asked(each) for each in answers], left=1, seconds=2.0, cpu_s=0.1)
    figures = summarise(run, Slo(20.0, 100.0))
    assert figures["requests"] == 4
    assert figures["requests_per_s"] == 1.0
    assert figures["goodput_per_s"] == 0.5
    assert figures["goodput_share"] == 0.25
    assert figures["cached_share"] == 0.25
    assert figures["cpu_ms_an_answer"] == 50.0
    assert figures["ttft_ms_p50"] == 10.0
    assert figures["tpot_ms_p99"] == 15.0
    assert figures["gap_ms_mean"] == pytest.approx(35 / 3)
    assert figures["errors: refused"] == 1
    assert len(workload_plot.draw(run, Slo(20.0, 100.0)).axes) == 2
    assert build_report(run, Slo(20.0, 100.0), arm="ours").goals == {}


def test_nothing_answered_is_no_figure() -> None:
    run = Run([asked(came(problem="status", status=503)), asked(came(problem="connection", status=0))], 0, 1.0)
    figures = summarise(run, Slo(1.0, 1.0))
    assert figures["ttft_ms_mean"] is None
    assert figures["cached_share"] is None
    assert errors(run) == {"status 503": 1, "connection": 1}
    assert quantile([], 0.5) != quantile([], 0.5)


@pytest.mark.parametrize("pace", [["--rate", "200"], ["--concurrency", "2"]])
def test_a_run_against_a_server(pace: list[str], tmp_path: Path) -> None:
    engine = ScriptedEngine(Script(prefill_s=0.0, token_s=0.0), model="scripted")
    with serve(engine.app()) as url:
        sent = ["--url", url, "--requests", "12", "--turns", "3", "--think-s", "0", "--results", str(tmp_path)]
        assert main([*sent, *pace, "--answer-tokens", "5", "--spread", "0"]) == 0
    report = json.loads((tmp_path / "workload.json").read_text())
    assert report["arms"]["server"]["answered"] == 12
    assert {sample["output_tokens"] for sample in report["samples"]} == {5}
    # A later turn has said before what was asked and answered.
    assert any(json.loads(prompt)[1]["role"] == "assistant" for prompt in engine.prompts if len(json.loads(prompt)) > 1)


def test_what_cannot_be_reached_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    assert main(["--url", url, "--results", str(tmp_path)]) == 3
    assert "--model" in capsys.readouterr().err
    assert main(["--url", url, "--body", "[1]", "--model", "x", "--results", str(tmp_path)]) == 3
    gone = ["--url", url, "--model", "x", "--requests", "2", "--rate", "100"]
    assert main([*gone, "--results", str(tmp_path)]) == 1
