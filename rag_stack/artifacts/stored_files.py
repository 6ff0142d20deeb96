"""Files of a published version as local files, read from the object store and verified chunk by chunk."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import Chunk
from rag_stack.artifacts.fetch import THREADS, Origin
from rag_stack.artifacts.local_file import translated
from rag_stack.artifacts.manifest import Manifest
from rag_stack.errors import ArtifactCorruptError


@contextmanager
def stored_files(catalog: Catalog, manifest: Manifest, *, only: Sequence[str] | None = None) -> Iterator[Path]:
    """A directory that holds all files of a version, or only some, until the block ends. Blocking.

    On `file://` it is the published directory itself, otherwise a temporary one (below TMPDIR) that the files must fit
    in. No more than a few chunks are in memory. Raises ArtifactCorruptError when a byte is not the published one.
    """
    chunks = [chunk for chunk in manifest.chunks() if only is None or chunk.path in only]
    paths = [entry.path for entry in manifest.files if only is None or entry.path in only]
    local = catalog.store.local(str(manifest.ref))
    with closing(Origin(catalog.store, manifest)) as origin, tempfile.TemporaryDirectory(prefix="rag-stack-") as made:
        directory = local or Path(made)

        def take(chunk: Chunk) -> None:
            data = origin.read(chunk)
            try:
                chunk.verify(data)
            except ArtifactCorruptError as exc:
                raise ArtifactCorruptError(f"{str(manifest.ref)!r} in {catalog.store.url}: {exc.message}") from exc
            if local is None:
                _write(directory / chunk.path, data, offset=chunk.offset)

        if local is None:
            with translated("write", directory):
                for path in paths:
                    (directory / path).parent.mkdir(parents=True, exist_ok=True)
                    (directory / path).touch()
        with ThreadPoolExecutor(THREADS, "stored-files") as pool:
            taken = [pool.submit(take, chunk) for chunk in chunks]
            try:
                for each in taken:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        yield directory


def _write(path: Path, data: bytes | bytearray | memoryview, *, offset: int) -> None:
    with translated("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            view = memoryview(data)
            while len(view):
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(descriptor)
