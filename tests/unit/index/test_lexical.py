"""The lexical index: equal to bm25s' own to the byte, in bounded runs, and searched from its mapped files."""

import heapq
import json
import random
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer

from rag_stack.errors import IndexVersionError
from rag_stack.index import lexical_runs, lexical_writer
from rag_stack.index.format import (
    LEXICAL_DATA_FILE,
    LEXICAL_FILES,
    LEXICAL_INDICES_FILE,
    LEXICAL_INDPTR_FILE,
    LEXICAL_MAPPED_FILES,
    Lexical,
)
from rag_stack.index.lexical import LexicalIndex
from rag_stack.index.lexical_writer import LexicalWriter
from rag_stack.types import Passage

_WORDS = ["ship", "ships", "harbour", "lamp", "running", "the", "Über", "naïve", "x1", "日本語", "a", "oil", "whale"]


def _texts(count: int, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    names = [*_WORDS, *(f"word{n}" for n in range(200))]
    return [" ".join(draw.choices(names, k=draw.randrange(40))) for _ in range(count)]


def _passages(texts: Sequence[str], title: str = "") -> list[Passage]:
    return [Passage(str(n), str(n), text, title, "", 0, len(text)) for n, text in enumerate(texts)]


def _write(folder: Path, passages: Sequence[Passage], settings: Lexical | None = None) -> Path:
    folder.mkdir()
    writer = LexicalWriter(folder / "work", settings or Lexical())
    for passage in passages:
        writer.append([passage])
    writer.complete(folder / "lexical")
    return folder / "lexical"


def _open(path: Path, passages: int, settings: Lexical | None = None) -> LexicalIndex:
    return LexicalIndex.open(path, settings or Lexical(), passages=passages)


def _by_bm25s(texts: Sequence[str], path: Path, settings: Lexical) -> bm25s.BM25:
    """bm25s' own index, with the tokens numbered in alphabetical order, where it takes the order of a set."""
    stemmer = Stemmer.Stemmer(settings.stemmer) if settings.stemmer else None
    stop = settings.stop_words or []
    tokens = bm25s.tokenize(
        list(texts), lower=settings.lower_case, stopwords=stop, stemmer=stemmer, return_ids=False, show_progress=False
    )
    numbers = {token: number for number, token in enumerate(sorted({token for each in tokens for token in each}))}
    index = bm25s.BM25(k1=settings.k1, b=settings.b)
    index.index(([[numbers[token] for token in each] for each in tokens], numbers), show_progress=False)
    index.save(path, show_progress=False)
    return index


@pytest.mark.parametrize(
    "settings",
    [Lexical(), Lexical(stop_words=None, stemmer=None, lower_case=False, k1=0.9, b=0.4), Lexical(stemmer="german")],
)
@pytest.mark.parametrize(("run", "at_once"), [(1 << 21, 64), (700, 64), (700, 3)])
def test_its_arrays_are_those_of_bm25s(
    tmp_path: Path, settings: Lexical, run: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical_writer, "_RUN_POSTINGS", run)
    monkeypatch.setattr(lexical_runs, "_MERGED_RUNS", at_once)
    monkeypatch.setattr(lexical_writer, "_BATCH_PASSAGES", 16)
    monkeypatch.setattr(lexical_writer, "_BLOCK_POSTINGS", 1000)
    texts = _texts(1500)
    ours = _write(tmp_path / "ours", _passages(texts), settings)
    _by_bm25s(texts, tmp_path / "theirs", settings)
    for file in (LEXICAL_DATA_FILE, LEXICAL_INDICES_FILE, LEXICAL_INDPTR_FILE):
        name = Path(file).name
        assert (ours / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    for name in ("vocab.index.json", "params.index.json"):
        assert json.loads((ours / name).read_text()) == json.loads((tmp_path / "theirs" / name).read_text())
    assert sorted(path.name for path in ours.iterdir()) == sorted(Path(file).name for file in LEXICAL_FILES)


def test_runs_are_merged_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open at once does not grow with the number of runs, and what the merges leave is removed."""
    monkeypatch.setattr(lexical_writer, "_RUN_POSTINGS", 100)
    monkeypatch.setattr(lexical_writer, "_BATCH_PASSAGES", 8)
    monkeypatch.setattr(lexical_runs, "_MERGED_RUNS", 4)
    opened: list[int] = []
    merge = heapq.merge
    monkeypatch.setattr(heapq, "merge", lambda *runs: opened.append(len(runs)) or merge(*runs))
    (tmp_path / "o").mkdir()
    writer = LexicalWriter(tmp_path / "o" / "work", Lexical())
    writer.append(_passages(_texts(300)))
    writer.complete(tmp_path / "o" / "lexical")
    writer.close()
    assert len(opened) > 4
    assert max(opened) == 4
    assert len([path for path in (tmp_path / "o" / "work").rglob("*") if path.is_file()]) == 5
    _open(tmp_path / "o" / "lexical", 300).try_out()


def test_bm25s_itself_opens_it_and_finds_the_same(tmp_path: Path) -> None:
    texts = _texts(800)
    path = _write(tmp_path / "ours", _passages(texts))
    theirs, ours = bm25s.BM25.load(path, mmap=True), _open(path, 800)
    for query in ("ships in the harbour", "Über word7 word7", "a running lamp"):
        tokens = bm25s.tokenize([query], stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)[0]
        np.testing.assert_allclose(ours.scores(query).weights, theirs.get_scores(tokens), rtol=1e-6)


def test_the_best_come_first_and_equal_ones_in_the_order_of_rows(tmp_path: Path) -> None:
    path = _write(tmp_path / "o", _passages(["whale oil", "oil lamp", "rye bread", "oil lamp", "oil and whale"]))
    scores = _open(path, 5).scores("The OILS, of a whale!")
    assert scores.best(10).tolist() == [0, 4, 1, 3]
    assert scores.best(3).tolist() == [0, 4, 1]
    assert scores.best(1).tolist() == [0]
    shares = scores.shares(np.array([0, 1, 2]))
    assert 1 > shares[0] > shares[1] > shares[2] == 0


def test_a_word_that_nobody_has_makes_every_share_smaller(tmp_path: Path) -> None:
    index = _open(_write(tmp_path / "o", _passages(["whale oil", "rye bread"])), 2)
    known, unknown = index.scores("whale oil"), index.scores("whale oil zeppelin")
    assert known.weights.tolist() == unknown.weights.tolist()
    assert unknown.shares(np.array([0]))[0] < known.shares(np.array([0]))[0]
    assert index.scores("zeppelin").best(5).tolist() == []
    assert index.scores("").shares(np.array([0, 1])).tolist() == [0, 0]


def test_forbidden_rows_are_not_found(tmp_path: Path) -> None:
    index = _open(_write(tmp_path / "o", _passages(["oil", "oil oil", "oil oil oil"])), 3)
    assert index.scores("oil", allowed=np.array([True, False, True])).best(3).tolist() == [2, 0]


def test_titles_count(tmp_path: Path) -> None:
    path = _write(tmp_path / "o", [*_passages(["about nothing"], title="Lighthouses"), *_passages(["a lamp"])])
    assert _open(path, 2).scores("lighthouse").best(2).tolist() == [0]


def test_passages_without_words_are_there_and_never_found(tmp_path: Path) -> None:
    path = _write(tmp_path / "o", _passages(["the a of", "!", "?"]))
    index = _open(path, 3)
    index.try_out()
    assert index.scores("the lamp").best(3).tolist() == []


def test_the_same_passages_give_the_same_bytes(tmp_path: Path) -> None:
    passages = _passages(_texts(300))
    one, two = _write(tmp_path / "one", passages), _write(tmp_path / "two", passages)
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


@pytest.mark.parametrize("file", [*LEXICAL_MAPPED_FILES, "lexical/params.index.json"])
def test_a_truncated_or_missing_file_says_so(tmp_path: Path, file: str) -> None:
    path = _write(tmp_path / "o", _passages(_texts(300)))
    damaged = path / Path(file).name
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(IndexVersionError, match="build the index again"):
        _open(path, 300)
    damaged.write_bytes(b"")
    with pytest.raises(IndexVersionError, match="build the index again"):
        _open(path, 300)
    damaged.unlink()
    with pytest.raises(IndexVersionError, match="build the index again"):
        _open(path, 300)


def test_files_of_another_index_say_so(tmp_path: Path) -> None:
    path = _write(tmp_path / "o", _passages(_texts(300)))
    with pytest.raises(IndexVersionError, match="300 passages, expected 299"):
        _open(path, 299)


@pytest.mark.parametrize(("name", "value"), [("data", np.nan), ("indices", 1 << 30), ("indptr", 1 << 40)])
def test_damaged_lists_are_noticed_when_they_are_tried_out(tmp_path: Path, name: str, value: float) -> None:
    path = _write(tmp_path / "o", _passages(["oil lamp", "oil"]))
    array = np.load(path / f"{name}.csc.index.npy")
    array[1] = value
    np.save(path / f"{name}.csc.index.npy", array)
    with pytest.raises(IndexVersionError, match="damaged"):
        _open(path, 2).try_out()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "zzz"},
        {"int_dtype": "int8"},
        {"k1": "a"},
        {"k1": 1},
        {"b": 0.5},
        {"backend": "numba"},
        {"method": "bm25+"},
        {"num_docs": "3"},
        {"num_docs": 3.0},
        {"more": 1},
    ],
)
def test_parameters_that_are_not_its_settings_are_refused_when_it_is_opened(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = _write(tmp_path / "o", _passages(["oil lamp", "oil", "rye bread"]))
    file = path / "params.index.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"version": "99"}))
    assert _open(path, 3).scores("oil").best(3).tolist() == [1, 0]
    file.write_text(json.dumps(written | change))
    with pytest.raises(IndexVersionError, match=next(iter(change)) if "num_docs" not in change else "passages"):
        _open(path, 3)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"k1": '])
def test_parameters_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = _write(tmp_path / "o", _passages(["oil lamp"]))
    (path / "params.index.json").write_text(text)
    with pytest.raises(IndexVersionError, match="build the index again"):
        _open(path, 1)


def test_it_is_opened_with_the_settings_that_it_was_written_with(tmp_path: Path) -> None:
    path = _write(tmp_path / "o", _passages(["oil lamp"]), Lexical(k1=1, b=1))
    _open(path, 1, Lexical(k1=1, b=1)).try_out()
    with pytest.raises(IndexVersionError, match=r"k1=1\.0 where 1\.5 was expected"):
        _open(path, 1)


def test_trying_out_asks_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = _open(_write(tmp_path / "o", _passages(["oil lamp", "oil"])), 2)
    asked: list[str] = []
    answer = index.scores
    monkeypatch.setattr(index, "scores", lambda query: asked.append(query) or answer(query))
    index.try_out()
    assert [set(query.split()) for query in asked] == [{"lamp", "oil"}]

    def fails(_: str) -> None:
        raise TypeError("not a number")

    monkeypatch.setattr(index, "scores", fails)
    with pytest.raises(IndexVersionError, match="answers no query: TypeError: not a number"):
        index.try_out()


def test_weights_beyond_their_limit_are_noticed_when_it_is_tried_out(tmp_path: Path) -> None:
    path = _write(tmp_path / "o", _passages(["oil lamp", "oil"]))
    array = np.load(path / "data.csc.index.npy")
    np.save(path / "data.csc.index.npy", array * 100)
    with pytest.raises(IndexVersionError, match="more weight than they can have"):
        _open(path, 2).try_out()
