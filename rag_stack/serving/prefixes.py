"""The applications of a server: their names and the route prefixes that are not the engine's."""

from typing import Final

ENGINE_APP: Final = "engine"
SEARCH_APP: Final = "vector_stores"
MODELS_APP: Final = "models"
ADMIN_APP: Final = "admin"
FILES_APP: Final = "files"
HEALTH_APP: Final = "health"
READY_APP: Final = "ready"
PREFIXES: Final = {
    ADMIN_APP: "/admin",
    SEARCH_APP: "/v1/vector_stores",
    FILES_APP: "/v1/files",
    MODELS_APP: "/v1/models",
    HEALTH_APP: "/health",
    READY_APP: "/ready",
}
OTHER_PREFIXES: Final = tuple(PREFIXES.values())
