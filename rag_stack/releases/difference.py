"""What changes from one release to another, field by field."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rag_stack.releases.pinned import PinnedRelease

_ABSENT: Final = None


@dataclass(frozen=True, slots=True)
class Change:
    """One field, such as `engine.max_num_seqs` or `stores.docs.version`; None where a release does not have it."""

    field: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        """For scripts and over HTTP."""
        return {"field": self.field, "before": self.before, "after": self.after}


def changes(old: PinnedRelease, new: PinnedRelease) -> tuple[Change, ...]:
    """Every field that differs, in the order of the new release; a digest only where the version beside it does not."""
    before, after = dict(_fields(old)), dict(_fields(new))
    differing = {key: None for key in (*after, *before) if before.get(key, _ABSENT) != after.get(key, _ABSENT)}
    told = [key for key in differing if not (key.endswith(".digest") and f"{key[:-7]}.version" in differing)]
    return tuple(Change(key, before.get(key), after.get(key)) for key in told)


def only_followed(old: PinnedRelease, new: PinnedRelease) -> bool:
    """Whether they differ in nothing but versions of stores that follow what is promoted, and so have it already."""
    follows = set(old.followed) & set(new.followed)
    fields = {f"stores.{name}.{key}" for name in follows for key in ("version", "digest")}
    return all(change.field in fields for change in changes(old, new))


def _fields(pinned: PinnedRelease) -> Iterator[tuple[str, Any]]:
    content = pinned.content
    release = content["release"]
    by_name = {store["name"]: {k: v for k, v in store.items() if k != "name"} for store in release["stores"]}
    yield from _flat({**release, "stores": by_name}, "")
    for store in content["followed"]:
        yield f"stores.{store}.follows", True


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
