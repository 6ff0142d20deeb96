"""A request's filter -> the rows that may be found.

A comparison looks at values of its own type only: `eq` with "3" does not find 3. `eq`, `in` and the orderings never
find a passage that lacks the key or has another type under it; `ne` and `nin` find exactly what `eq` and `in` do not.
Strings are ordered by code point, so ISO dates compare as dates do.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rag_stack.errors import InvalidRequestError
from rag_stack.index.format import attribute_column, type_name
from rag_stack.index.passages import PassageTable
from rag_stack.protocol import ComparisonFilter, CompoundFilter, Filter, Scalar

Mask = npt.NDArray[np.bool_]

_MAX_DEPTH = 8
_MAX_COMPARISONS = 64
_MAX_VALUES = 1000
# A mask has a byte a row.
_CACHE_BYTES = 256 << 20


class MaskCache:
    """The masks of the latest filters over one passage table. Safe to use from several threads."""

    def __init__(self, passages: PassageTable, *, capacity: int = 64, capacity_bytes: int = _CACHE_BYTES) -> None:
        self._passages = passages
        self._capacity = max(1, min(capacity, capacity_bytes // max(1, len(passages))))
        self._masks: OrderedDict[str, Mask] = OrderedDict()
        self._lock = Lock()

    def row_mask(self, wanted: Filter) -> Mask:
        """As the function `row_mask`; the answer is shared, so it is read-only."""
        key = wanted.model_dump_json()
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        mask = row_mask(wanted, self._passages)
        mask.setflags(write=False)
        with self._lock:
            self._masks[key] = mask
            while len(self._masks) > self._capacity:
                self._masks.popitem(last=False)
        return mask

    def __len__(self) -> int:
        return len(self._masks)


def row_mask(wanted: Filter, passages: PassageTable) -> Mask:
    """Which rows a filter allows: bool [rows]. Raises InvalidRequestError for one that makes no sense."""
    check(wanted)
    return _mask(wanted, passages)


def check(wanted: Filter) -> None:
    """Raise InvalidRequestError for a filter that makes no sense whatever the store holds."""
    comparisons = values = 0
    waiting: list[tuple[Filter, int]] = [(wanted, 1)]
    while waiting:
        each, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise InvalidRequestError(f"`filters` may be nested {_MAX_DEPTH} deep", param="filters")
        if isinstance(each, CompoundFilter):
            waiting.extend((inner, depth + 1) for inner in each.filters)
            continue
        comparisons += 1
        if comparisons > _MAX_COMPARISONS:
            raise InvalidRequestError(f"`filters` may hold {_MAX_COMPARISONS} comparisons", param="filters")
        values += len(each.value) if isinstance(each.value, list) else 1
        if values > _MAX_VALUES:
            raise InvalidRequestError(f"`filters` may hold {_MAX_VALUES:,} values in all", param="filters")
        _check_comparison(each)


def _check_comparison(wanted: ComparisonFilter) -> None:
    value = wanted.value
    if wanted.type in ("in", "nin"):
        if not isinstance(value, list):
            raise _impossible(wanted, "a list of strings, numbers or booleans")
    elif isinstance(value, list):
        raise _impossible(wanted, "one string, number or boolean")
    elif wanted.type not in ("eq", "ne") and isinstance(value, bool):
        raise _impossible(wanted, "a string or a number, which have an order")


def _impossible(wanted: ComparisonFilter, expected: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the filter `{wanted.type}` on {wanted.key!r} takes {expected}, got {wanted.value!r}", param="filters"
    )


def _mask(wanted: Filter, passages: PassageTable) -> Mask:
    if isinstance(wanted, CompoundFilter):
        masks = [_mask(inner, passages) for inner in wanted.filters]
        combine = np.logical_and if wanted.type == "and" else np.logical_or
        return np.asarray(combine.reduce(masks), np.bool_)
    values = wanted.value if isinstance(wanted.value, list) else [wanted.value]
    match wanted.type:
        case "eq" | "in":
            return _equal(wanted.key, values, passages)
        case "ne" | "nin":
            return ~_equal(wanted.key, values, passages)
        case "gt":
            return _compared(pc.greater, wanted.key, values[0], passages)
        case "gte":
            return _compared(pc.greater_equal, wanted.key, values[0], passages)
        case "lt":
            return _compared(pc.less, wanted.key, values[0], passages)
        case "lte":
            return _compared(pc.less_equal, wanted.key, values[0], passages)


def _equal(key: str, values: Sequence[Scalar], passages: PassageTable) -> Mask:
    found = np.zeros(len(passages), np.bool_)
    for type_ in {type_name(value) for value in values}:
        column = _column(key, type_, passages)
        if column is not None:
            typed = pa.array([value for value in values if type_name(value) == type_], column.type)
            found |= _to_numpy(pc.is_in(column, value_set=typed))
    return found


def _compared(compare: pc.Function, key: str, value: Scalar, passages: PassageTable) -> Mask:
    column = _column(key, type_name(value), passages)
    return np.zeros(len(passages), np.bool_) if column is None else _to_numpy(compare(column, pa.scalar(value)))


def _column(key: str, type_: str, passages: PassageTable) -> pa.ChunkedArray | None:
    name = attribute_column(key, type_)
    return passages.table.column(name) if name in passages.table.column_names else None


def _to_numpy(matches: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.fill_null(matches, False).to_numpy(), np.bool_)
