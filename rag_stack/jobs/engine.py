"""Who embeds in a build; see `rag_stack.jobs.index_build.build_index`."""

from typing import Literal, TypeAlias

Engine: TypeAlias = Literal["auto", "ray", "local"]
