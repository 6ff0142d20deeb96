"""Options that are given as NAME=NUMBER."""

from collections.abc import Sequence

from rag_stack.errors import ConfigError


def named_numbers(options: Sequence[str], *, option: str) -> dict[str, float]:
    """The numbers by their names; the last of a name counts. Raises ConfigError."""
    found = {}
    for each in options:
        name, _, value = each.partition("=")
        try:
            found[name] = float(value)
        except ValueError as exc:
            raise ConfigError(f"{option} {each!r}: expected NAME=NUMBER") from exc
    return found
