"""Which rows a filter allows, over passages whose attributes differ in keys and types."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from rag_stack.errors import InvalidRequestError
from rag_stack.index.passages import PassageTable
from rag_stack.protocol import Filter
from rag_stack.retrieval.filters import MaskCache, row_mask
from tests.embedder import WordEmbedder
from tests.layer import Document, build_index

_ATTRIBUTES: list[dict[str, Any]] = [
    {"year": 1999.0, "lang": "en", "draft": True},
    {"year": 2005.0, "lang": "de", "draft": False},
    {"year": 2020.0, "lang": "fr"},
    {"year": "2020", "lang": "en"},
    {},
]
_FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> PassageTable:
    documents = [
        Document(document_id=f"d{n}", text=f"text {n}", title="", uri="", attributes=attributes)
        for n, attributes in enumerate(_ATTRIBUTES)
    ]
    folder = tmp_path_factory.mktemp("index") / "v1"
    return build_index(folder, documents, embedder=WordEmbedder(dimension=32), name="docs").passages


def _filter(type_: str, key: str, value: Any) -> Filter:
    # As it comes over the wire.
    return _FILTER.validate_json(json.dumps({"type": type_, "key": key, "value": value}))


@pytest.mark.parametrize(
    ("type_", "key", "value", "rows"),
    [
        ("eq", "year", 2020, [2]),
        ("eq", "year", "2020", [3]),
        ("eq", "draft", True, [0]),
        ("eq", "draft", 1, []),
        ("eq", "year", True, []),
        ("eq", "nothing", "x", []),
        ("ne", "year", 2020, [0, 1, 3, 4]),
        ("ne", "draft", True, [1, 2, 3, 4]),
        ("gt", "year", 1999, [1, 2]),
        ("gte", "year", 1999, [0, 1, 2]),
        ("lt", "year", 2005.5, [0, 1]),
        ("lte", "year", 1999, [0]),
        ("gt", "lang", "de", [0, 2, 3]),
        ("lt", "year", "3000", [3]),
        ("gt", "nothing", 5, []),
        ("in", "lang", ["en", "fr"], [0, 2, 3]),
        ("in", "year", [1999, "2020", False], [0, 3]),
        ("in", "lang", [], []),
        ("nin", "lang", ["en", "fr"], [1, 4]),
        ("nin", "lang", [], [0, 1, 2, 3, 4]),
    ],
)
def test_a_comparison(passages: PassageTable, type_: str, key: str, value: Any, rows: list[int]) -> None:
    assert np.flatnonzero(row_mask(_filter(type_, key, value), passages)).tolist() == rows


def test_filters_nest(passages: PassageTable) -> None:
    wanted = _FILTER.validate_python(
        {
            "type": "or",
            "filters": [
                {"type": "eq", "key": "lang", "value": "fr"},
                {
                    "type": "and",
                    "filters": [
                        {"type": "eq", "key": "lang", "value": "en"},
                        {"type": "ne", "key": "draft", "value": True},
                    ],
                },
            ],
        }
    )
    assert np.flatnonzero(row_mask(wanted, passages)).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        ("gt", True, "takes a string or a number, which have an order, got True"),
        ("lte", [1], "takes one string, number or boolean, got \\[1.0\\]"),
        ("eq", ["x"], "takes one string, number or boolean"),
        ("in", "x", "takes a list of strings, numbers or booleans, got 'x'"),
    ],
)
def test_a_filter_without_a_meaning_is_refused(passages: PassageTable, type_: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected) as caught:
        row_mask(_filter(type_, "year", value), passages)
    assert (caught.value.status, caught.value.param) == (400, "filters")


def test_depth_and_size_have_bounds(passages: PassageTable) -> None:
    leaf: dict[str, Any] = {"type": "eq", "key": "lang", "value": "en"}
    deep = leaf
    for _ in range(8):
        deep = {"type": "and", "filters": [deep]}
    with pytest.raises(InvalidRequestError, match="8 deep"):
        row_mask(_FILTER.validate_python(deep), passages)
    wide = {"type": "or", "filters": [{"type": "or", "filters": [leaf] * 33}] * 2}
    with pytest.raises(InvalidRequestError, match="64 comparisons"):
        row_mask(_FILTER.validate_python(wide), passages)
    many = {"type": "in", "key": "lang", "value": ["en"] * 500}
    row_mask(_FILTER.validate_python({"type": "or", "filters": [many, many]}), passages)
    with pytest.raises(InvalidRequestError, match="1,000 values in all"):
        row_mask(_FILTER.validate_python({"type": "or", "filters": [many, many, leaf]}), passages)


def test_masks_are_kept_within_a_budget(passages: PassageTable) -> None:
    cache = MaskCache(passages, capacity_bytes=2 * len(passages))
    for year in (1999, 2005, 2020):
        cache.row_mask(_filter("eq", "year", year))
    assert len(cache) == 2


def test_masks_are_kept_for_the_latest_filters_only(passages: PassageTable) -> None:
    cache = MaskCache(passages, capacity=2)
    first = cache.row_mask(_filter("eq", "year", 1999))
    assert cache.row_mask(_filter("eq", "year", 1999)) is first
    assert not first.flags.writeable
    cache.row_mask(_filter("eq", "year", 2005))
    cache.row_mask(_filter("eq", "year", 2020))
    assert len(cache) == 2
    again = cache.row_mask(_filter("eq", "year", 1999))
    assert again is not first
    assert again.tolist() == first.tolist()
