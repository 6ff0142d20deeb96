"""What a node gives, and what it never does."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.chunk import CHUNK_BYTES, Chunk
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.offer import Offer
from rag_stack.artifacts.partial import Partial
from rag_stack.errors import ArtifactNotFoundError

CONTENT = bytes(CHUNK_BYTES) + b"the end"


@pytest.fixture
def manifest(catalog: Catalog, tree: Callable[..., Path]) -> Manifest:
    return catalog.publish(tree({"a/w.bin": CONTENT, "c.json": b"{}"}), kind="models", name="m", metadata={})


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(tmp_path / "cache")


def write(partial: Partial, index: int) -> None:
    chunk = partial.chunks[index]
    content = CONTENT if chunk.path == "a/w.bin" else b"{}"
    partial.write(chunk, content[chunk.offset : chunk.offset + chunk.size_bytes])


def write_all(partial: Partial) -> None:
    for index in range(len(partial.chunks)):
        write(partial, index)


def read(offer: Offer, artifact: str, chunk: Chunk) -> bytes:
    buffer = bytearray(chunk.size_bytes)
    offer.read_into(artifact, chunk, memoryview(buffer))
    return bytes(buffer)


def test_a_part_then_the_whole(cache: NodeCache, manifest: Manifest) -> None:
    offer, chunks = Offer(cache.directory), manifest.chunks()
    assert offer.chunks(manifest.hex) == 0

    def fill(partial: Partial) -> None:
        write(partial, 1)
        assert offer.chunks(manifest.hex) == 0b010
        assert read(offer, manifest.hex, chunks[1]) == b"the end"
        with pytest.raises(ArtifactNotFoundError):
            read(offer, manifest.hex, chunks[0])
        write_all(partial)

    cache.insert(manifest, fill)
    assert offer.chunks(manifest.hex) == 0b111
    assert b"".join(read(offer, manifest.hex, chunk) for chunk in chunks) == CONTENT + b"{}"


def test_what_was_evicted_is_not_here(cache: NodeCache, manifest: Manifest) -> None:
    shutil.rmtree(cache.insert(manifest, write_all))
    offer = Offer(cache.directory)
    assert offer.chunks(manifest.hex) == 0
    with pytest.raises(ArtifactNotFoundError):
        read(offer, manifest.hex, manifest.chunks()[0])


def test_a_file_that_is_too_short_is_not_here(cache: NodeCache, manifest: Manifest) -> None:
    directory = cache.insert(manifest, write_all)
    (directory / "a" / "w.bin").chmod(0o644)
    with (directory / "a" / "w.bin").open("r+b") as file:
        file.truncate(CHUNK_BYTES + 3)
    with pytest.raises(ArtifactNotFoundError, match="3 of 7 bytes"):
        read(Offer(cache.directory), manifest.hex, manifest.chunks()[1])


@pytest.mark.parametrize("path", ["../../../secret", "/etc/hostname", "link", "a/../../../../secret"])
def test_nothing_outside_the_cache_is_given(cache: NodeCache, manifest: Manifest, path: str) -> None:
    directory = cache.insert(manifest, write_all)
    secret = cache.directory.parent / "secret"
    secret.write_bytes(b"secret")
    (directory / "link").symlink_to(secret)
    with pytest.raises(ArtifactNotFoundError, match="not inside"):
        read(Offer(cache.directory), manifest.hex, replace(manifest.chunks()[0], path=path, size_bytes=6))


@pytest.mark.parametrize("artifact", ["..", "../artifacts", "", "A" * 64, "a" * 63])
def test_what_is_no_digest_is_not_here(cache: NodeCache, manifest: Manifest, artifact: str) -> None:
    cache.insert(manifest, write_all)
    offer = Offer(cache.directory)
    assert offer.chunks(artifact) == 0
    with pytest.raises(ArtifactNotFoundError):
        read(offer, artifact, manifest.chunks()[0])
