"""What an index finds of what exact search finds, and the cheapest search parameters that find enough."""

from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from rag_stack.index.flat_file import FlatFile

Vectors = npt.NDArray[np.float32]
_Setting: TypeAlias = dict[str, int]

_SEED: Final = 20_241
_QUERIES: Final = 200
_LEAST_QUERIES: Final = 50
# So many products of a query and a passage: a minute on two cores, for 384 dimensions.
_PRODUCTS: Final = 500_000_000
# Noise beside a passage's vector of length 1: the nearest passage then has the cosine that it has to a real question,
# some 0.6. It is spread as the corpus is. Spread evenly over all dimensions it lies outside of what passages span, such
# queries are easy, and an index that was tuned by them lost 0.03 of dense nDCG@10 on SciFact (loadtests.quality).
_NOISE: Final = 1.4
_SPREAD_ROWS: Final = 1024
# Passages as near as the last of the nearest are as good: equal texts, and what float32 does not tell apart.
_TIE: Final = 1e-5
_FLOAT_BYTES: Final = 4
_PAGE_BYTES: Final = 4096
# What a vector that is ranked again costs beside its bytes, where all is in memory: it waits for the cache.
_MISS_BYTES: Final = 512
_PROBES: Final = tuple(sorted({int(2 ** (step / 4)) for step in range(80)}))
_EFFORTS: Final = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024)
_REFINED: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class Exact:
    """Queries [n, d], and the similarity that a passage must have to be among the `at` nearest to each: [n]."""

    queries: Vectors
    floors: Vectors
    at: int
    vectors: Vectors

    @classmethod
    def of(cls, flat: FlatFile, *, at: int, queries: Vectors | None = None) -> Self:
        """Exact search over a complete file, for made queries and those that are given. Blocking.

        Queries are made as far as those that are given are fewer than 200. A made query is the vector of a passage with
        noise, as far from it as questions are; the passage itself counts as an answer, since it is one. Where there are
        fewer than `at` passages, all of them are asked for.
        """
        given = np.empty((0, flat.dimension), np.float32) if queries is None else np.asarray(queries, np.float32)
        asked = np.concatenate([_made(flat, fewer=len(given)), given])
        at = min(at, flat.count)
        similarities, _ = flat.index().search(asked, at)
        return cls(asked, similarities[:, -1], at, flat.vectors())


def recall_of(index: faiss.Index, exact: Exact) -> float:
    """The share (0..1) of the nearest passages that the index finds as it is set, to four digits. Blocking."""
    return round(float(_found(index, exact).mean()) / exact.at, 4)


def reaches(index: faiss.Index, exact: Exact, target: float) -> bool:
    """Whether its recall, as it is set, reaches the target by more than the luck of these queries. Blocking.

    That is by its standard error: other queries of the same kind find that much more or less.
    """
    recalls = _found(index, exact) / exact.at
    return round(float(recalls.mean() - recalls.std() / len(recalls) ** 0.5), 4) >= target


def _found(index: faiss.Index, exact: Exact) -> npt.NDArray[np.int64]:
    """How many of its nearest passages each query finds, [n]."""
    _, rows = index.search(exact.queries, exact.at)
    found = np.zeros(len(rows), np.int64)
    # One vector a find, a query at a time: little memory, and the order of the sums is the same everywhere.
    for number, (query, floor, line) in enumerate(zip(exact.queries, exact.floors, rows, strict=True)):
        near = np.array(exact.vectors[line[line >= 0]]) @ query
        found[number] = (near >= floor - _TIE).sum()
    return found


def apply(index: faiss.Index, search_parameters: str) -> None:
    """Set search parameters; they are stored in the file, so that every reader searches as the index was tuned."""
    if search_parameters:
        faiss.ParameterSpace().set_index_parameters(index, search_parameters)


def tune(index: faiss.Index, exact: Exact, *, target: float, in_memory: bool = False) -> str:
    """The cheapest search parameters that reach the target, see `reaches`; the best where none do. Blocking.

    Cheap is what reads few bytes: of codes in the lists, and of vectors to rank again, each of which is a page of the
    disk unless the index is `in_memory`. No clock is asked, so that the same index is tuned the same way everywhere.
    Empty for a recipe that has nothing to set.
    """
    knobs = _knobs(index, exact)
    reached: list[_Setting] = []
    outer, inner = (*knobs, _NO_KNOB, _NO_KNOB)[:2]
    # Recall rises with both: what just reaches the target lies on a line from the corner of few lists and many refined
    # to the other.
    left = len(inner.values)
    for value in outer.values:
        while left:
            setting = {outer.name: value, inner.name: inner.values[left - 1]}
            apply(index, _text(setting))
            if not reaches(index, exact, target):
                break
            reached.append(setting)
            left -= 1
    if not reached:
        return _text({knob.name: knob.values[-1] for knob in (outer, inner)})
    cheapest = min(reached, key=lambda each: _bytes_read(index, each, exact.at, in_memory=in_memory))
    return _text(_narrowed(index, exact, cheapest, outer, target=target))


def _narrowed(index: faiss.Index, exact: Exact, setting: _Setting, outer: "_Knob", *, target: float) -> _Setting:
    """The setting with the smallest number that still reaches the target, between the knob's values."""
    low, high = max((value for value in outer.values if value < setting[outer.name]), default=0), setting[outer.name]
    while outer.name and high - low > 1:
        middle = (low + high) // 2
        apply(index, _text({**setting, outer.name: middle}))
        if reaches(index, exact, target):
            high = middle
        else:
            low = middle
    return {**setting, outer.name: high}


@dataclass(frozen=True, slots=True)
class _Knob:
    """A search parameter, and its values from cheap to thorough. One without a name is none."""

    name: str
    values: tuple[int, ...]


_NO_KNOB: Final = _Knob("", (0,))


def _knobs(index: faiss.Index, exact: Exact) -> list[_Knob]:
    index = faiss.downcast_index(index)
    match index:
        case faiss.IndexPreTransform():
            return _knobs(index.index, exact)
        case faiss.IndexRefine():
            refined = tuple(factor for factor in _REFINED if factor == 1 or factor * exact.at <= index.ntotal)
            return [*_knobs(index.base_index, exact), _Knob("k_factor_rf", refined)]
        case faiss.IndexIVF():
            return [_Knob("nprobe", (*(probes for probes in _PROBES if probes < index.nlist), int(index.nlist)))]
        case faiss.IndexHNSW():
            return [_Knob("efSearch", _EFFORTS)]
        case _:
            return []


def _text(setting: _Setting) -> str:
    return ",".join(f"{name}={value}" for name, value in setting.items() if name)


def _bytes_read(index: faiss.Index, setting: _Setting, at: int, *, in_memory: bool) -> float:
    """What a query reads besides the head that all read, in bytes of codes that are read one after another."""
    index = faiss.downcast_index(index)
    match index:
        case faiss.IndexPreTransform():
            return _bytes_read(index.index, setting, at, in_memory=in_memory)
        case faiss.IndexRefine():
            size = int(faiss.downcast_index(index.refine_index).sa_code_size())
            each = size + _MISS_BYTES if in_memory else max(size, _PAGE_BYTES)
            again = setting["k_factor_rf"] * at * each
            return again + _bytes_read(index.base_index, setting, at, in_memory=in_memory)
        case faiss.IndexIVF():
            return setting["nprobe"] * int(index.ntotal) * int(index.code_size) / int(index.nlist)
        case faiss.IndexHNSW():
            return setting["efSearch"] * int(index.d) * _FLOAT_BYTES
        case _:
            return 0


def _made(flat: FlatFile, *, fewer: int) -> Vectors:
    count = max(0, min(flat.count, max(_LEAST_QUERIES, min(_QUERIES, _PRODUCTS // flat.count))) - fewer)
    draw = np.random.default_rng(_SEED)
    passages, others = (
        np.array(flat.vectors()[np.sort(draw.choice(flat.count, size, replace=False, shuffle=False))])
        for size in (count, min(flat.count, _SPREAD_ROWS))
    )
    # A sum with random weights has the covariance of what is summed.
    noise = draw.standard_normal((count, len(others)), np.float32) @ (others - others.mean(axis=0))
    lengths = np.linalg.norm(noise, axis=1, keepdims=True)
    queries = passages + _NOISE * np.divide(noise, lengths, out=np.zeros_like(noise), where=lengths > 0)
    return np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)
