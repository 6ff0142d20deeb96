"""Scores of a tiny cross-encoder: their order, their bounds, and what is refused."""

import math
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.errors import ArtifactError
from rag_stack.retrieval.reranker import CrossEncoder, check_reranker
from rag_stack.types import Passage
from tests.cross_encoder import write_cross_encoder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_cross_encoder(tmp_path / "model")


def load(files: Path) -> CrossEncoder:
    return CrossEncoder.load(files, name="tiny", digest="sha256:" + "0" * 64, threads=1)


def passage(text: str, *, title: str = "") -> Passage:
    return Passage(text, text, text, title, "", 0, len(text))


def test_a_score_is_the_logistic_of_the_logit_in_the_order_of_the_passages(files: Path) -> None:
    scores = load(files).scores("which", [passage("bread"), passage("oil oil oil"), passage("rye")])
    # [CLS] which [SEP] bread [SEP]
    assert scores[0] == pytest.approx(1 / (1 + math.exp(5 - (1 + 11 + 2 + 4 + 2) / 5)))
    assert scores.dtype == np.float32
    assert scores.argmax() == 1


def test_a_title_is_read_with_its_text(files: Path) -> None:
    reranker = load(files)
    assert reranker.scores("which", [passage("bread", title="oil")]) == reranker.text_scores("which", ["oil bread"])


def test_no_passage_has_no_score(files: Path) -> None:
    assert load(files).scores("which", []).shape == (0,)


def test_the_longer_of_a_pair_loses_its_end(files: Path) -> None:
    reranker = load(files)
    assert reranker.max_tokens == 16
    # 16 less three special tokens and one of the query leave twelve.
    long, cut = "rye " * 12 + "oil " * 5000, "rye " * 12
    assert reranker.text_scores("which", [long]) == reranker.text_scores("which", [cut])
    # And a query that alone is too long leaves its passage whole.
    pair = next(iter(reranker._pairs("storm " * 300, ["rye bread"])))
    assert (len(pair.ids), sum(pair.type_ids)) == (16, 3)


def test_threads_may_score_at_once_and_company_changes_nothing(files: Path) -> None:
    reranker = load(files)
    texts = ["bread " * n for n in range(1, 12)]
    alone = [float(reranker.text_scores("which oil", [text])[0]) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: reranker.text_scores("which oil", texts).tolist(), range(8)))
    assert together == [alone] * 8


def test_several_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'tiny' gives an array of \(1, 3\) for a pair, expected one number"):
        load(write_cross_encoder(tmp_path, labels=3))


@pytest.mark.parametrize("name", ["tokenizer.json", "onnx/model.onnx"])
def test_a_missing_or_broken_file_is_named(files: Path, name: str) -> None:
    (files / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match="model"):
        load(files)
    (files / name).unlink()
    with pytest.raises(ArtifactError, match="model"):
        load(files)


def test_what_a_release_names_must_be_a_reranker(files: Path) -> None:
    def manifest(task: str, names: int) -> Manifest:
        entries = describe_files(files)[:names]
        return Manifest(kind="models", name="m", version="v1", files=entries, metadata={"task": task})

    check_reranker(manifest("rerank", 2))
    with pytest.raises(ArtifactError, match="'models/m/v1' is no reranker: it is for 'embed'"):
        check_reranker(manifest("embed", 2))
    with pytest.raises(ArtifactError, match="is no reranker"):
        check_reranker(manifest("rerank", 1))


def test_it_stops_before_the_next_pair(files: Path) -> None:
    looks = iter([False, False, True])
    with pytest.raises(CancelledError):
        load(files).text_scores("which", ["oil"] * 9, stopped=lambda: next(looks))
    assert list(looks) == []
