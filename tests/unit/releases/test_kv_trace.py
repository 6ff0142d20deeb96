"""Reading a trace: both forms, what a killed server leaves, and what is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from rag_stack.errors import ConfigError
from rag_stack.releases.kv_trace import KvChains, read_trace, to_line


def written(tmp_path: Path, *rows: dict[str, Any], end: str = "\n") -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + end)
    return path


def test_mooncakes_form(tmp_path: Path) -> None:
    first = {"timestamp": 2000, "input_length": 1000, "output_length": 3, "hash_ids": [0, 1]}
    second = {"timestamp": 1000, "input_length": 1024, "output_length": 3, "hash_ids": [0, 2]}
    early, late = read_trace(written(tmp_path, first, second))
    assert (early.arrival_s, late.arrival_s) == (1.0, 2.0)
    assert late.segments == ((0, 512), (1, 488))
    assert early.prompt_tokens == 1024
    chains = KvChains(16)
    assert chains.keys(early.segments)[:32] == chains.keys(late.segments)[:32]
    assert chains.keys(early.segments)[32] != chains.keys(late.segments)[32]


def test_parts_by_name_make_the_same_blocks_whatever_their_borders(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "output": ["a1", 5], "prefix": [["system", 5], ["doc", 11], ["q1", 3]]},
        {"timestamp": 1, "output_length": 5, "prefix": [["system", 5], ["doc", 11], ["q1", 3], ["a1", 5], ["q2", 9]]},
    ]
    one, two = read_trace(written(tmp_path, *rows))
    chains = KvChains(4)
    whole = chains.keys((*one.segments, one.output))
    assert chains.keys(two.segments)[: len(whole)] == whole, "a later prompt repeats the answer"


def test_what_a_recorder_writes_is_read(tmp_path: Path) -> None:
    line = to_line(
        timestamp_ms=1500,
        input_length=40,
        output_length=7,
        hash_ids=[11, 12],
        block_size=16,
        duration_ms=250,
        ttft_ms=100,
        cached_tokens=32,
    )
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n" + line + "\n")
    request, again = read_trace(path)
    assert (request.arrival_s, request.seconds, request.ttft_s, request.cached_tokens) == (1.5, 0.25, 0.1, 32)
    assert request.prompt_tokens == 40
    assert request.segments[:2] == again.segments[:2]
    assert request.segments[2] != again.segments[2], "nothing tells that the ends are the same"


def test_an_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "output_length": 1, "prefix": [["a", 3]]}\n{"timestamp": 1, "outp')
    assert len(read_trace(path)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "not json",
        '{"timestamp": 0, "output_length": 1}',
        '{"timestamp": 0, "output_length": 1, "prefix": []}',
        '{"timestamp": 0, "output_length": 1, "prefix": [["a", -3]]}',
        '{"timestamp": 0, "output_length": 1, "input_length": 0, "hash_ids": []}',
        '{"timestamp": "x", "output_length": 1, "prefix": [["a", 3]]}',
    ],
)
def test_what_is_no_request_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match="line 1"):
        read_trace(path)


def test_an_empty_file_and_none_are_said(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="holds no request"):
        read_trace(tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match="cannot read"):
        read_trace(tmp_path / "none.jsonl")
