"""How a process that a fork server forked came to be: told in its environment, for the report of its start."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from rag_stack.generation.launcher import FORKED
from rag_stack.timeline import Span

_IMPORT = "import vLLM"
_SERVER = "fork server"


@dataclass(frozen=True, slots=True)
class Birth:
    """Unix seconds. `parent` is that of the process that asked for this one, if it was forked too.

    launched_s               when the launcher stood where a new Python would have
    forked_s                 when this process was there, with all its imports
    began_s, ended_s         when the fork server imported them
    """

    launched_s: float
    forked_s: float
    began_s: float
    ended_s: float
    parent: "Birth | None" = None

    def import_span(self) -> Span:
        """The import that this process did not have to do, beside whatever went on meanwhile."""
        return Span(_IMPORT, self.began_s, self.ended_s, _SERVER, beside=True)

    def to_text(self) -> str:
        """For an environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_text` wrote, read as JSON."""
        parent = fields.get("parent")
        return cls(**{**fields, "parent": cls.from_fields(parent) if parent else None})


def born(environ: Mapping[str, str] = os.environ) -> Birth | None:
    """How the process of this environment was forked; None for one that a Python of its own began."""
    text = environ.get(FORKED)
    return Birth.from_fields(json.loads(text)) if text else None
