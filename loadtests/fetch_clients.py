"""One client that brings one folder of a bucket to a directory, in a process of its own, timed from within.

`python -m loadtests.fetch_clients CLIENT URL DIRECTORY BYTES` prints one line of JSON. Imports, credentials and a first
small request are over before the clock starts.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from loadtests.backed_memory import back
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import Chunk
from rag_stack.artifacts.fetch import THREADS, Origin
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.metrics import MemoryRecorder

Download = Callable[[], Path]
OURS: Final = "rag_stack"
RAY: Final = "Ray Serve LLM"
_CONCURRENT_FILES: Final = 4


def _rag_stack(url: str, directory: Path) -> Download:
    """Verified, and whole in a node cache: what this project does."""
    root, ref = _split(url)
    catalog = Catalog(open_store(root))
    manifest = catalog.resolve(ref.kind, ref.name, ref.version)
    tiers = Tiers(catalog, NodeCache(directory), MemoryRecorder())
    _warm(catalog, ref)
    return lambda: tiers.ensure_local(manifest).path


def _ranges(url: str, directory: Path) -> Download:
    """The same reads by the same client, written without a look at them."""
    root, ref = _split(url)
    catalog = Catalog(open_store(root))
    manifest = catalog.resolve(ref.kind, ref.name, ref.version)
    _warm(catalog, ref)

    def download() -> Path:
        files = {entry.path: (directory / entry.path).open("wb") for entry in manifest.files}
        with closing(Origin(catalog.store, manifest)) as origin, ThreadPoolExecutor(THREADS) as pool:

            def move(chunk: Chunk) -> None:
                os.pwrite(files[chunk.path].fileno(), origin.read(chunk), chunk.offset)

            list(pool.map(move, manifest.chunks()))
        for file in files.values():
            file.close()
        return directory

    return download


def _pyarrow_copy(url: str, directory: Path) -> Download:
    from pyarrow import fs

    from rag_stack.artifacts.s3_store import bulk_reader

    client, path = bulk_reader(20, 8), url.removeprefix("s3://")
    client.get_file_info(path)

    def download() -> Path:
        fs.copy_files(path, str(directory), source_filesystem=client, destination_filesystem=fs.LocalFileSystem())
        return directory

    return download


def _s3fs(url: str, directory: Path) -> Download:
    import s3fs

    client = s3fs.S3FileSystem(use_listings_cache=False)
    client.ls(url)

    def download() -> Path:
        client.get(f"{url}/", f"{directory}/", recursive=True)
        return directory

    return download


def _boto3(url: str, directory: Path) -> Download:
    boto3 = importlib.import_module("boto3")
    config = importlib.import_module("botocore.config").Config(max_pool_connections=50)
    client = boto3.client("s3", config=config)
    bucket, prefix = _bucket(url)
    keys = [each["Key"] for each in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]]

    def download() -> Path:
        with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
            list(pool.map(lambda key: client.download_file(bucket, key, str(directory / Path(key).name)), keys))
        return directory

    return download


def _obstore(url: str, directory: Path) -> Download:
    obstore = importlib.import_module("obstore")
    s3 = importlib.import_module("obstore.store").S3Store
    bucket, prefix = _bucket(url)
    store = s3(
        bucket,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    keys = [each["path"] for batch in obstore.list(store, prefix=prefix) for each in batch]

    def bring(key: str) -> None:
        with (directory / Path(key).name).open("wb") as file:
            for piece in obstore.get(store, key).stream(min_chunk_size=16 * 2**20):
                file.write(piece)

    def download() -> Path:
        with ThreadPoolExecutor(_CONCURRENT_FILES) as pool:
            list(pool.map(bring, keys))
        return directory

    return download


def _runai(url: str, directory: Path) -> Download:
    """Its way to bring files to a directory, which vLLM calls. No wheel for glibc 2.28: rarely installed."""
    pull_files = importlib.import_module("runai_model_streamer").pull_files

    def download() -> Path:
        pull_files(url, str(directory), ignore_pattern=[])
        return directory

    return download


def _ray_serve_llm(url: str, directory: Path) -> Download:
    """What it does itself with a `bucket_uri`, before its engine reads."""
    importlib.import_module("boto3")
    files = importlib.import_module("ray.llm._internal.common.utils.cloud_utils").CloudFileSystem
    files.list_subfolders(url)

    def download() -> Path:
        files.download_files(path=str(directory), bucket_uri=url)
        return directory

    return download


CLIENTS: Mapping[str, Callable[[str, Path], Download]] = {
    OURS: _rag_stack,
    "pyarrow, ranges": _ranges,
    "pyarrow, copy_files": _pyarrow_copy,
    "s3fs": _s3fs,
    "boto3": _boto3,
    "obstore": _obstore,
    "runai-model-streamer": _runai,
    RAY: _ray_serve_llm,
}


def main() -> int:
    """Download once; 0, or 4 when the client is not installed."""
    name, url, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    try:
        download = CLIENTS[name](url, directory)
    except ImportError as exc:
        _say({"missing": str(exc)})
        return 4
    # What the client keeps in memory, and the page cache of what it writes.
    back(2 * int(sys.argv[4]), directory)
    before, cpu_s, started = _peak_bytes(), time.process_time(), time.perf_counter()
    path = download()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    _say({"seconds": seconds, "cpu_s": cpu_s, "memory_bytes": _peak_bytes() - before, "path": str(path)})
    return 0


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


def _split(url: str) -> tuple[str, ArtifactRef]:
    root, kind, name, version = url.rsplit("/", 3)
    return root, ArtifactRef(kind, name, version)  # type: ignore[arg-type]


def _bucket(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc, parts.path.strip("/")


def _warm(catalog: Catalog, ref: ArtifactRef) -> None:
    with closing(catalog.store.reader(f"{ref}/manifest.json")) as reader:
        reader.read_at(0, 1)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
