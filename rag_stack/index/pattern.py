"""Patterns that choose files by their path, the same wherever the files lie."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_ANY_FOLDERS: Final = "**"


@dataclass(frozen=True, slots=True)
class Pattern:
    """`*`, `?` and `[...]` stay within a name; `**` stands for any number of folders, at the end for all below."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Pattern":
        """Raises ValueError for what can match no path."""
        if text.startswith("/"):
            raise ValueError(f"a pattern is relative to the source, got {text!r}")
        parts = tuple(part for part in text.split("/") if part not in ("", "."))
        if not parts or ".." in parts:
            raise ValueError(f"a pattern names what is in the source, got {text!r}")
        if any(_ANY_FOLDERS in part and part != _ANY_FOLDERS for part in parts):
            raise ValueError(f"'**' stands alone between slashes, got {text!r}")
        return cls(parts)

    def matches(self, path: str) -> bool:
        """Whether it chooses a path such as `a/b.txt`."""
        names, parts = path.split("/"), self.parts
        if parts[-1] == _ANY_FOLDERS:
            parts = (*parts, "*")
        name = part = 0
        # Where to go on when names after the latest `**` do not fit: it takes one more of them.
        retry: tuple[int, int] | None = None
        while name < len(names):
            if part < len(parts) and parts[part] == _ANY_FOLDERS:
                retry, part = (name, part + 1), part + 1
            elif part < len(parts) and fnmatchcase(names[name], parts[part]):
                name, part = name + 1, part + 1
            elif retry is not None:
                name, part = retry[0] + 1, retry[1]
                retry = (name, part)
            else:
                return False
        return part == len(parts)
