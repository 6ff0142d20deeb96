"""The latest used values by key, bounded by their number and by the memory that they take."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Recent(Generic[KeyT, ValueT]):
    """At most `entries` values of `limit_bytes` in all, each as large as `size_of` says. Safe to use from threads."""

    def __init__(self, entries: int, limit_bytes: int, size_of: Callable[[KeyT, ValueT], int]) -> None:
        self._entries = entries
        self._limit_bytes = limit_bytes
        self._size_of = size_of
        # With the size that each had when it came: a text grows when it is encoded.
        self._values: OrderedDict[KeyT, tuple[ValueT, int]] = OrderedDict()
        self._size_bytes = 0
        self._lock = Lock()

    @property
    def size_bytes(self) -> int:
        """What all values take."""
        return self._size_bytes

    def get(self, key: KeyT) -> ValueT | None:
        """A value, which is now the latest used."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: KeyT, value: ValueT) -> None:
        """Remember a value; one that is too large by itself is not, and drives no others out."""
        size = self._size_of(key, value)
        with self._lock:
            if key in self._values:
                self._size_bytes -= self._values.pop(key)[1]
            if size > self._limit_bytes:
                return
            self._values[key] = (value, size)
            self._size_bytes += size
            while len(self._values) > self._entries or self._size_bytes > self._limit_bytes:
                self._size_bytes -= self._values.popitem(last=False)[1][1]
