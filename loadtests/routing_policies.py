"""How a question may find its replica: what `loadtests.routing` compares."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence

from loadtests.routing_simulator import Policy, Replica
from loadtests.routing_trace import Asked
from rag_stack.serving.routing.affinity import Affinity, rendezvous
from rag_stack.serving.routing.balance import Balance, Work
from rag_stack.serving.routing.subject import Subject, subject_of

# Ray's default: what matches less than this is taken for no match.
_MATCH = 0.1


class RoundRobin:
    """In turns: what is done for requests without a session where affinity is off."""

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, _: Asked, loads: Sequence[int], __: Sequence[Replica], ___: float) -> int:
        """The next one."""
        self._turn = (self._turn + 1) % len(loads)
        return self._turn


class PowerOfTwo:
    """The one of two drawn ones that has less to do, as far as the router knows."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed)

    def choose(self, _: Asked, loads: Sequence[int], __: Sequence[Replica], ___: float) -> int:
        """See above."""
        return min(self._draw.sample(range(len(loads)), 2), key=lambda each: loads[each])


class LeastLoaded:
    """What Ray's KV-aware router comes to: it weighs the request's own tokens against the replicas' caches.

    The router has the question; in the cache is `system | documents | question`. Beyond the system prompt, which is
    the same everywhere, nothing ever overlaps.
    """

    def choose(self, _: Asked, loads: Sequence[int], __: Sequence[Replica], ___: float) -> int:
        """See above."""
        return min(range(len(loads)), key=lambda each: loads[each])


class RayPrefix:
    """Ray's own prefix tree over the question's text, told of each choice, with load breaking its ties."""

    def __init__(self) -> None:
        from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree import PrefixTree

        self._tree = PrefixTree()
        self._names: list[str] = []
        self._clock = 0.0

    def choose(self, asked: Asked, loads: Sequence[int], _: Sequence[Replica], __: float) -> int:
        """See above."""
        if not self._names:
            self._names = [str(n) for n in range(len(loads))]
            self._tree.add_tenants(self._names, 0.0)
        text, matched = self._tree.prefix_match(asked.text, self._names)
        if len(text) < _MATCH * len(asked.text) or not matched:
            matched = self._tree.get_smallest_tenants() or self._names
        chosen = min(matched, key=lambda name: loads[int(name)])
        self._clock += 1.0
        self._tree.insert(asked.text, chosen, self._clock)
        return int(chosen)


class Hashed:
    """Consistent hashing of a key, within the bounds of our Balance."""

    def __init__(self, key: Callable[[Asked], object]) -> None:
        self._key = key
        self._balance = Balance()

    def choose(self, asked: Asked, loads: Sequence[int], _: Sequence[Replica], __: float) -> int:
        """See above."""
        names = [str(n) for n in range(len(loads))]
        self._balance.learn({name: Work(load) for name, load in zip(names, loads, strict=True)})
        key = self._key(asked)
        chosen = max(self._balance.with_room(names), key=lambda name: rendezvous(name, key))
        self._balance.send(chosen, names)
        return int(chosen)


class Ours:
    """What the router does; `subject` is what it is told that a question is about."""

    def __init__(self, subject: Callable[[Asked], Subject | None]) -> None:
        self._subject = subject
        self._affinity = Affinity()

    def choose(self, asked: Asked, loads: Sequence[int], _: Sequence[Replica], __: float) -> int:
        """See above."""
        names = [str(n) for n in range(len(loads))]
        self._affinity.learn({name: Work(load) for name, load in zip(names, loads, strict=True)})
        return int(self._affinity.order(names, self._subject(asked))[0][0])


class Oracle:
    """Knows what will be found, and what each replica has cached and waiting, this moment: the earliest first token."""

    def choose(self, asked: Asked, _: Sequence[int], replicas: Sequence[Replica], now_s: float) -> int:
        """See above."""

        def first_token_s(each: Replica) -> float:
            left = each.prompt_tokens(asked.found) - each.hit_tokens(asked.found)
            return max(0.0, each.free_s - now_s) + left / each.fleet.prefill_tokens_s

        return min(range(len(replicas)), key=lambda n: first_token_s(replicas[n]))


def body_of(asked: Asked) -> bytes:
    """The question as a request has it."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": asked.text}]}).encode()


def policies(*, ray: bool = True) -> dict[str, Policy]:
    """All, new, by name. Ray's takes seconds to import."""
    made: dict[str, Policy] = {
        "round robin": RoundRobin(),
        "power of two": PowerOfTwo(),
        **({"ray prefix": RayPrefix()} if ray else {}),
        "kv aware": LeastLoaded(),
        "rarest word": Hashed(_RarestWord()),
        "words": Ours(lambda asked: subject_of(body_of(asked))),
        "prompt_cache_key": Ours(lambda asked: Subject((_number(asked.topic),), given=True)),
        "first document": Hashed(lambda asked: asked.found[:1]),
        "documents": Ours(lambda asked: Subject(tuple(map(_number, asked.found))) if asked.found else None),
        "oracle": Oracle(),
    }
    return made


class _RarestWord:
    """Of a question's words the one that was asked about least, of those that were asked about before."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def __call__(self, asked: Asked) -> object:
        subject = subject_of(body_of(asked))
        words = subject.words if subject else ()
        known = [word for word in words if word in self._counts] or list(words)
        for word in words:
            self._counts[word] = self._counts.get(word, 0) + 1
        return min(known, key=lambda word: self._counts[word], default=0)


def _number(row: int) -> int:
    return int.from_bytes(hashlib.blake2b(str(row).encode(), digest_size=8).digest(), "big")
