"""The stand-in for a device that reads prompts: what it caches, what a cancelled reading leaves, what it takes."""

import asyncio
import time

import httpx
import pytest

from loadtests.scripted_engine import Script, ScriptedEngine
from loadtests.scripted_prefill import Device, PrefixCache

DEVICE = Device(tokens_per_s=20_000.0, block_tokens=16, chunk_tokens=64)


def prompt(tokens: int, *, end: str = "") -> str:
    return "".join(f"{n:04d}" for n in range(tokens)) + end


async def test_what_was_read_is_found_by_full_blocks() -> None:
    cache = PrefixCache(DEVICE)
    assert (await cache.read(prompt(100))).cached_tokens == 0
    again = await cache.read(prompt(100))
    assert (again.prompt_tokens, again.cached_tokens) == (100, 96)
    assert (await cache.read(prompt(96))).cached_tokens == 80, "the last token is always read"
    assert (await cache.read(prompt(40, end="other" * 40))).cached_tokens == 32
    assert (await cache.read(prompt(100), salt="another")).cached_tokens == 0


async def test_a_cancelled_reading_leaves_whole_chunks() -> None:
    cache = PrefixCache(Device(tokens_per_s=2000.0, block_tokens=16, chunk_tokens=64))
    reading = asyncio.create_task(cache.read(prompt(640)))
    while not (await cache.read(prompt(65))).cached_tokens:
        pass
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    found = (await cache.read(prompt(640))).cached_tokens
    assert found % 64 == 0
    assert 64 <= found < 640


async def test_one_device_reads_for_all() -> None:
    cache = PrefixCache(Device(tokens_per_s=4000.0))
    began = time.perf_counter()
    await asyncio.gather(*(cache.read(prompt(200), salt=str(n)) for n in range(3)))
    assert time.perf_counter() - began >= 3 * 200 / 4000


async def test_the_least_used_blocks_go_first() -> None:
    cache = PrefixCache(Device(tokens_per_s=1e6, block_tokens=16, cache_blocks=10))
    await cache.read(prompt(161), salt="first")
    await cache.read(prompt(33), salt="second")
    assert (await cache.read(prompt(33), salt="second")).cached_tokens == 32
    assert (await cache.read(prompt(161), salt="first")).cached_tokens == 0


async def test_the_engine_tells_what_it_found() -> None:
    app = ScriptedEngine(Script(device=DEVICE, token_s=0.0), model="m").app()
    body = {"model": "m", "messages": [{"role": "user", "content": prompt(100)}], "max_tokens": 2}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        first, second = [(await http.post("/v1/chat/completions", json=body)).json() for _ in range(2)]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
    assert first["choices"] == second["choices"]
