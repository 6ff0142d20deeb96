"""The rollback drill on a running server: what is live goes back, and forward again whatever happens in between.

An index: until a search over HTTP is answered from the other version. One request may be answered by one of several
processes, so it counts when `IN_A_ROW` answers, one after the other, come from there. A release: until its rollout is
steady, with the other version promoted and no replica of the first left.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rag_stack.client import Client
from rag_stack.errors import RagStackError, RollbackError, UnavailableError
from rag_stack.recovery.rollback_drill import RollbackDrill

IN_A_ROW: Final = 8
_LOOK_S: Final = 0.1
_REASON: Final = "drill rollback"


class AdminCaller(Protocol):
    """Calls a server's /admin routes."""

    def get(self, path: str) -> Mapping[str, Any]: ...

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class _Watch:
    """Searches of a live store while it is rolled."""

    client: Client
    store: str
    question: str
    versions: list[str] = field(default_factory=list)
    failed: int = 0
    last_failure: str = ""

    def until(self, version: str, *, limit_s: float) -> float:
        """Seconds until the server answers from a version, again and again. Raises UnavailableError."""
        began_s, row, first_s = time.perf_counter(), 0, 0.0
        while row < IN_A_ROW:
            found = self._search()
            now_s = time.perf_counter() - began_s
            first_s = first_s if row else now_s
            row = row + 1 if found == version else 0
            if now_s > limit_s:
                told = f"; the last search that failed: {self.last_failure}" if self.last_failure else ""
                raise UnavailableError(f"{self.store!r} is not answered from {version!r} after {limit_s:g} s{told}")
            if not row:
                time.sleep(_LOOK_S)
        return first_s

    def _search(self) -> str | None:
        try:
            version = self.client.search(self.question, store=self.store, top_k=1).index_version
        except RagStackError as exc:
            self.failed, self.last_failure = self.failed + 1, exc.message
            return None
        self.versions.append(version)
        return version


def roll_index(
    admin: AdminCaller, client: Client, name: str, *, store: str, server: str, limit_s: float
) -> RollbackDrill:
    """Roll a live index back and forward. Blocking. Raises RollbackError when it has no version before."""
    history = admin.get(f"/admin/indexes/{name}/history")["data"]
    new = history[0]["version"] if history else None
    old = history[0]["previous"] if history else None
    if new is None or old is None:
        raise RollbackError(f"indexes/{name} has no version before the promoted one: there is nothing to drill")
    watch = _Watch(client, store, "drill")
    watch.until(new, limit_s=limit_s)
    try:
        admin.post(f"/admin/indexes/{name}/rollback", {"reason": _REASON, "expected_version": new})
        back_s = watch.until(old, limit_s=limit_s)
    finally:
        # Also when the answer to the rollback was lost; not when somebody else has promoted meanwhile.
        if admin.get(f"/admin/indexes/{name}/history")["data"][0]["version"] == old:
            # It served before the drill, whatever its gates said then.
            body = {"version": new, "reason": f"{_REASON}: forward again", "force": True, "expected_version": old}
            admin.post(f"/admin/indexes/{name}/promote", body)
    forward_s = watch.until(new, limit_s=limit_s)
    return RollbackDrill(
        name=f"indexes/{name}",
        old=old,
        new=new,
        promote_seconds=None,
        rollback_seconds=back_s,
        forward_seconds=forward_s,
        searches=len(watch.versions) + watch.failed,
        failed=watch.failed,
        mixed=sum(version not in (old, new) for version in watch.versions),
        live=server,
    )


def roll_release(admin: AdminCaller, name: str, *, server: str, limit_s: float) -> RollbackDrill:
    """Roll a live release back and forward. Blocking. Raises RollbackError when it has no version before."""
    promoted = admin.get(f"/admin/releases/{name}")["promoted"] or {}
    new, old = promoted.get("version"), promoted.get("previous")
    if new is None or old is None:
        raise RollbackError(f"releases/{name} has no version before the promoted one: there is nothing to drill")

    def go(to: str, reason: str) -> float:
        began_s = time.perf_counter()
        admin.post(f"/admin/releases/{name}/rollback", {"to": to, "reason": reason})
        _until(lambda: _is_steady(admin.get(f"/admin/releases/{name}"), to), limit_s=limit_s, what=f"{name}/{to}")
        return time.perf_counter() - began_s

    try:
        back_s = go(old, _REASON)
    except BaseException:  # Ctrl-C, too: what was live is live again, or the reason why not is the first one's
        with suppress(RagStackError):
            admin.post(f"/admin/releases/{name}/rollback", {"to": new, "reason": f"{_REASON}: forward again"})
        raise
    return RollbackDrill(
        name=f"releases/{name}",
        old=old,
        new=new,
        promote_seconds=None,
        rollback_seconds=back_s,
        forward_seconds=go(new, f"{_REASON}: forward again"),
        searches=0,
        failed=0,
        mixed=0,
        live=server,
    )


def _is_steady(row: Mapping[str, Any], version: str) -> bool:
    return bool(row["plan"]["state"] == "steady" and row["version"] == version)


def _until(holds: Callable[[], bool], *, limit_s: float, what: str) -> None:
    until_s = time.perf_counter() + limit_s
    while not holds():
        if time.perf_counter() > until_s:
            raise UnavailableError(
                f"{what} does not serve alone after {limit_s:g} s; `rag-stack release status` says why"
            )
        time.sleep(_LOOK_S)
