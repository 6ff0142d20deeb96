"""Where on an object store the parts of a catalog are."""

from typing import Final

from rag_stack.artifacts.manifest import MANIFEST_NAME, POINTER_NAME, ArtifactKind, ArtifactRef
from rag_stack.artifacts.promotion import archive_name

# Below a version while it is being published: whose content that is.
_CLAIM_NAME: Final = ".publishing"
# Below a name: the promotions that its pointer does not hold any more. No version's name begins with a dot.
_HISTORY: Final = ".history"


def manifest_key(ref: ArtifactRef) -> str:
    """Where a version's manifest is; while it is not there the version does not exist."""
    return f"{ref}/{MANIFEST_NAME}"


def claim_key(ref: ArtifactRef) -> str:
    """Where a publisher says that it is at work on a version."""
    return f"{ref}/{_CLAIM_NAME}"


def pointer_key(kind: ArtifactKind, name: str) -> str:
    """Where it stands which version of a name is promoted."""
    return f"{kind}/{name}/{POINTER_NAME}"


def history_prefix(kind: ArtifactKind, name: str) -> str:
    """Below what the archived promotions of a name are."""
    return f"{kind}/{name}/{_HISTORY}"


def archive_key(kind: ArtifactKind, name: str, number: int) -> str:
    """Where the promotion with a number is, once the pointer does not hold it any more."""
    return f"{history_prefix(kind, name)}/{archive_name(number)}"
