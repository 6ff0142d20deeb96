"""Index builds, two at a time on one index, killed at random moments; what must outlive them."""

import json
import multiprocessing
import os
import random
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from loadtests.kill_damage import Damage
from loadtests.kill_log import acknowledge, whole_lines
from loadtests.rebuild_embedder import CheapEmbedder
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import PromotionConflictError, RagStackError
from rag_stack.index.documents import iter_documents
from rag_stack.index.reader import IndexVersion
from rag_stack.index.spec import IndexSpec
from rag_stack.jobs.build import BuildReport, BuildSettings, build_version
from rag_stack.jobs.local_embedding import LocalEmbedding
from rag_stack.metrics import MemoryRecorder

_INDEX = "killed-builds"
_BEGUN_S = 60.0
_RIVALS = 2
_PAGES = 120
_CHANGED = 6


class BuildsVictim:
    """Rival processes that build one index again and again while its documents stay; between rounds some change."""

    name = "builds"
    longest_s = 2.5

    def __init__(self, root: str, scratch: Path, *, seed: int) -> None:
        self._root = root
        self._scratch = scratch
        self._seed = seed
        self._folder = scratch / "documents"
        self._folder.mkdir()
        self._draw = random.Random(seed)
        self._logs: list[Path] = []
        self._checked: set[str] = set()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["loadtests.kill_builds", "s3fs", "aiobotocore.session", "pyarrow.fs"])
        for page in range(_PAGES):
            self._write(page, 0)

    def start(self, number: int) -> Sequence[BaseProcess]:
        """The rivals, at work on documents that differ from the last round's."""
        for page in self._draw.sample(range(_PAGES), _CHANGED):
            self._write(page, number + 1)
        self._logs = [self._scratch / f"builds-{number}-{rival}.acknowledged" for rival in range(_RIVALS)]
        processes, ends = [], []
        for log in self._logs:
            told, teller = self._context.Pipe(duplex=False)
            work = (self._root, self._scratch, self._folder, log, teller, dict(os.environ))
            process = self._context.Process(target=_build_again_and_again, args=work)
            process.start()
            teller.close()
            processes.append(process)
            ends.append(told)
        for told in ends:
            with closing(told):
                if not told.poll(_BEGUN_S):
                    raise TimeoutError("the process did not begin")
                told.recv()
        return processes

    def check(self, number: int) -> Damage:
        """What was promoted is in the history, what is listed is whole, and the next build finishes."""
        tiers = _tiers(self._root, self._scratch)
        lines = [json.loads(line) for log in self._logs for line in whole_lines(log)]
        promoted = [line["promoted"] for line in lines if "promoted" in line]
        inconsistent = [f"a build failed: {line['failed']}" for line in lines if "failed" in line]
        history = {each.version for each in tiers.catalog.history("indexes", _INDEX)}
        lost = [f"the promotion of {version} was acknowledged" for version in promoted if version not in history]
        left = {each for each in tiers.catalog.store.list_names(f"indexes/{_INDEX}") if each != "PROMOTED"}
        listed = set(tiers.catalog.versions("indexes", _INDEX))
        inconsistent += self._broken(tiers, listed - self._checked)
        self._checked |= listed
        try:
            report = _build(tiers, self._folder, turn=f"next-{number}")
        except RagStackError as exc:
            return Damage(tuple(lost), (*inconsistent, f"the next build does not finish: {exc.message}"))
        if not report.promoted or report.documents != _PAGES:
            inconsistent.append(f"the next build gives {report.documents} of {_PAGES} documents")
        conflicts = sum("conflict" in line for line in lines)
        figures = {"acknowledged": len(promoted), "conflicts": conflicts, "half_versions": len(left - listed)}
        return Damage(tuple(lost), tuple(inconsistent), figures)

    def _broken(self, tiers: Tiers, versions: set[str]) -> list[str]:
        found = []
        for version in sorted(versions):
            manifest = tiers.catalog.manifest(ArtifactRef("indexes", _INDEX, version))
            try:
                local = tiers.ensure_local(manifest)
                index = IndexVersion.open(local.path, manifest, embedder_digest=CheapEmbedder().digest)
                index.try_out()
            except RagStackError as exc:
                found.append(f"{version} is listed and not whole: {exc.message}")
                continue
            if index.document_count != _PAGES:
                found.append(f"{version} holds {index.document_count} of {_PAGES} documents")
            index.close()
            local.pin.release()
        return found

    def _write(self, page: int, edition: int) -> None:
        draw = random.Random(f"{self._seed} {page} {edition}")
        text = " ".join(str(draw.randrange(1000)) for _ in range(draw.randrange(40, 400)))
        (self._folder / f"{page:03}.txt").write_text(f"page {page} edition {edition}\n\n{text}")


def _tiers(root: str, scratch: Path) -> Tiers:
    return Tiers(Catalog(open_store(root)), NodeCache(scratch / "builds-cache"), MemoryRecorder())


def _build(tiers: Tiers, folder: Path, *, turn: str) -> BuildReport:
    """`turn` makes it another version of the same texts."""
    spec = IndexSpec.model_validate(
        {
            "name": _INDEX,
            "source": {"folder": folder},
            "embedder": {"name": "cheap"},
            "chunking": {"max_tokens": 32, "overlap_tokens": 0},
            "attributes": {"turn": turn},
            "gates": {"min_recall": 0.0},
        }
    )
    return build_version(
        iter_documents(spec),
        name=_INDEX,
        embedding=LocalEmbedding(CheapEmbedder()),
        settings=BuildSettings.of(spec, reason=turn),
        tiers=tiers,
    )


def _build_again_and_again(
    root: str, scratch: Path, folder: Path, log: Path, teller: Connection, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    tiers = _tiers(root, scratch)
    teller.send(None)
    for number in range(1_000_000):
        try:
            report = _build(tiers, folder, turn=f"{log.stem}-{number}")
        except PromotionConflictError:
            acknowledge(log, conflict=number)
        except BaseException as exc:
            acknowledge(log, failed=f"{type(exc).__name__}: {exc}")
            raise
        else:
            acknowledge(log, promoted=report.manifest.version)
