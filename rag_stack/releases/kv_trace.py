"""A trace of requests as the prefix cache sees them: JSON lines, of one replica, with no text in them.

    {"timestamp": 1200, "input_length": 1034, "output_length": 88, "hash_ids": [7, 9, 12], "block_size": 16}
    {"timestamp": 1350, "output_length": 20, "prefix": [["system", 40], ["doc-12#3", 230], ["question-8", 17]]}

`timestamp` is the arrival in milliseconds. The first form is that of the traces that Mooncake has published: an id
stands for `block_size` tokens (512 where it is left out) together with all before them. The second is for traces made
by hand: the parts of the prompt in their order, each with its tokens; equal ids are equal text. `output` may name the
answer, as in ["answer-8", 20], where a later prompt repeats it.

May be added: `duration`, milliseconds until the answer's end (else one request follows the other); `ttft`,
milliseconds to the first token; `cached_tokens`, what the engine found. RAG_STACK_KV_TRACE has a server write the first
form with all of these.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from rag_stack.errors import ConfigError

Segment: TypeAlias = tuple[str | int, int]

_MOONCAKE_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request: the parts of its prompt in order, `(id, tokens)`, and what is known of its answer."""

    arrival_s: float
    segments: tuple[Segment, ...]
    output: Segment
    seconds: float | None = None
    ttft_s: float | None = None
    cached_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """Of all parts."""
        return sum(tokens for _, tokens in self.segments)


@dataclass(slots=True)
class KvChains:
    """Numbers full blocks by their content and all before it, exactly: equal numbers, equal prefixes."""

    block_tokens: int
    _numbers: dict[tuple[int, tuple[tuple[str | int, int, int], ...]], int] = field(default_factory=dict)

    def keys(self, segments: Iterable[Segment]) -> list[int]:
        """The keys of the full blocks."""
        keys: list[int] = []
        parts: list[tuple[str | int, int, int]] = []
        room = self.block_tokens
        for name, tokens in segments:
            start = 0
            while start < tokens:
                taken = min(room, tokens - start)
                parts.append((name, start, taken))
                start, room = start + taken, room - taken
                if not room:
                    link = (keys[-1] if keys else -1, tuple(parts))
                    keys.append(self._numbers.setdefault(link, len(self._numbers)))
                    parts, room = [], self.block_tokens
        return keys

    def __len__(self) -> int:
        """Different blocks so far."""
        return len(self._numbers)


def read_trace(path: Path) -> list[TracedRequest]:
    """The requests in the order of their arrival. Raises ConfigError with the line that is none."""
    try:
        with path.open(encoding="utf-8") as file:
            requests = list(_requests(file, path))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the trace {path}: {exc}") from exc
    if not requests:
        raise ConfigError(f"{path} holds no request; RAG_STACK_KV_TRACE=DIRECTORY has a server write one")
    return sorted(requests, key=lambda request: request.arrival_s)


def to_line(
    *,
    timestamp_ms: float,
    input_length: int,
    output_length: int,
    hash_ids: Sequence[int],
    block_size: int,
    duration_ms: float,
    ttft_ms: float | None,
    cached_tokens: int | None,
) -> str:
    """One request in the first form, without the newline."""
    line = {
        "timestamp": round(timestamp_ms, 1),
        "input_length": input_length,
        "output_length": output_length,
        "hash_ids": list(hash_ids),
        "block_size": block_size,
        "duration": round(duration_ms, 1),
        "ttft": None if ttft_ms is None else round(ttft_ms, 1),
        "cached_tokens": cached_tokens,
    }
    return json.dumps({key: value for key, value in line.items() if value is not None}, separators=(",", ":"))


def _requests(lines: Iterable[str], path: Path) -> Iterator[TracedRequest]:
    kept = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    for place, (number, line) in enumerate(kept):
        try:
            yield _request(json.loads(line), number)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            # A server that was killed leaves the last line unfinished.
            if place == len(kept) - 1 and place and not line.endswith("\n"):
                return
            raise ConfigError(
                f"{path}, line {number}, is no request of a trace ({exc!r}): expected timestamp, output_length, and "
                "input_length with hash_ids, or prefix"
            ) from exc


def _request(row: Mapping[str, Any], number: int) -> TracedRequest:
    segments = _prefix(row["prefix"]) if "prefix" in row else _hashed(row, number)
    if not segments:
        raise ValueError("a prompt has at least one token")
    output = _prefix([row["output"]]) if "output" in row else ((f"answer of line {number}", int(row["output_length"])),)
    seconds, ttft_s, cached = (row.get(key) for key in ("duration", "ttft", "cached_tokens"))
    return TracedRequest(
        arrival_s=float(row["timestamp"]) / 1e3,
        segments=segments,
        output=output[0] if output else ("", 0),
        seconds=None if seconds is None else float(seconds) / 1e3,
        ttft_s=None if ttft_s is None else float(ttft_s) / 1e3,
        cached_tokens=None if cached is None else int(cached),
    )


def _prefix(parts: Sequence[Sequence[Any]]) -> tuple[Segment, ...]:
    for name, tokens in parts:
        if not isinstance(name, str | int) or not isinstance(tokens, int) or tokens < 0:
            raise ValueError(f"a part is [id, tokens], got {[name, tokens]}")
    return tuple((name, tokens) for name, tokens in parts if tokens)


def _hashed(row: Mapping[str, Any], number: int) -> tuple[Segment, ...]:
    """Each id for its block; what is beyond them has an id of its own, since nothing tells what it is."""
    size, length = int(row.get("block_size", _MOONCAKE_TOKENS)), int(row["input_length"])
    if size < 1 or length < 1:
        raise ValueError("block_size and input_length are numbers from 1")
    ids = [int(each) for each in row["hash_ids"]][: -(-length // size)]
    whole = [(each, min(size, length - n * size)) for n, each in enumerate(ids)]
    rest = length - sum(tokens for _, tokens in whole)
    return (*whole, (f"end of line {number}", rest)) if rest else tuple(whole)
