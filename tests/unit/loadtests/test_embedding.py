"""Figures of the embedding benchmark on data whose answers are known, and its data."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from loadtests.embedding_data import judged, long_texts, questions
from loadtests.embedding_figures import lowest_cosine, mean_ndcg, ndcg


def test_the_worst_row_counts() -> None:
    expected = np.array([[1, 0], [0, 1]], np.float32)
    found = np.array([[1, 0], [0.6, 0.8]], np.float32)
    assert lowest_cosine(expected, expected) == 1.0
    assert lowest_cosine(found, expected) == pytest.approx(0.8)


def test_ndcg_is_one_in_the_ideal_order_and_discounts_by_rank() -> None:
    assert ndcg(["a", "b", "c"], {"a": 1, "b": 1}) == 1.0
    assert ndcg(["x", "a"], {"a": 1}) == pytest.approx(1 / np.log2(3))
    assert ndcg(["x"] * 10 + ["a"], {"a": 1}) == 0.0
    assert ndcg(["a", "b"], {"a": 1, "b": 2}) == pytest.approx((1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)))


def test_mean_ndcg_searches_by_inner_product() -> None:
    passages = np.eye(3, dtype=np.float32)
    queries = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0]], np.float32)
    names = ["a", "b", "c"]
    assert mean_ndcg(queries, passages, names=names, relevant=[{"a": 1}, {"b": 1}]) == 1.0
    second = mean_ndcg(queries, passages, names=names, relevant=[{"a": 1}, {"a": 1}])
    assert second == pytest.approx((1 + 1 / np.log2(3)) / 2)


def test_judged_passages_are_all_there_and_others_as_many_as_asked(tmp_path: Path) -> None:
    assert judged(5, directory=tmp_path / "absent") is None
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n7\t3\t1\n7\t4\t1\n")
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": str(n), "text": f"q{n}"}) + "\n" for n in (7, 8))
    )
    rows = [json.dumps({"_id": str(n), "title": f"t{n}", "text": "x"}) for n in range(20)]
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write("\n".join(rows))
    told = judged(5, directory=tmp_path)
    assert told is not None
    assert (told.queries, told.relevant) == (("q7",), ({"3": 1, "4": 1},))
    assert len(told.names) == len(told.passages) == len(set(told.names)) == 7
    assert {"3", "4"} <= set(told.names)
    assert told.passages[told.names.index("3")] == "t3 x"
    everything = judged(500, directory=tmp_path)
    assert everything is not None
    assert len(everything.names) == 20


def test_questions_are_real_and_in_one_order() -> None:
    assert questions() == questions()
    assert "What does the with statement do?" in questions()
    assert all(400 < len(text) < 4000 for text in long_texts(3))
