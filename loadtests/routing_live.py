"""One arm of `loadtests.routing` on a real Ray: `python -m loadtests.routing_live ARM RELEASE.json QUESTIONS.json`.

Two replicas with our layer, the real index and embedder, HAProxy and the router; the engine is scripted, with a cache
of prefixes and a prefill that takes as long as what is not cached. Prints one line of JSON for each answer.

Arms: `turns` (affinity off), `words` (as shipped), and `ray`: Ray's own LLMRouter and PrefixCacheAffinityRouter, with
bodies forwarded.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx

from loadtests.scripted_engine import Script
from rag_stack.config import Release, RoutingConfig
from rag_stack.serving.environment import prepare

ARMS: Final = ("turns", "words", "ray")
REPLICAS: Final = 2
_UP_S: Final = 120.0
_TOKENS: Final = 8


def main(arm: str, release_file: Path, questions_file: Path) -> None:
    """Serve, ask, print."""
    prepare()
    release = Release.model_validate_json(release_file.read_text(encoding="utf-8"))
    release = release.model_copy(update={"routing": RoutingConfig(affinity="auto" if arm == "words" else "none")})
    asked = json.loads(questions_file.read_text(encoding="utf-8"))
    from loadtests import local_cluster, scripted_server

    if arm == "ray":
        scripted_server.with_router = _rays_router
    script = Script(**asked["script"])
    with (
        tempfile.TemporaryDirectory() as folder,
        local_cluster.started(release, Path(folder), script=script, num_cpus=4) as cluster,
    ):
        asyncio.run(_ask_all(cluster.url, release.model.name, asked["questions"], rate=asked["rate"]))


def _rays_router(engine: Any) -> Any:  # noqa: ANN401 - Ray is untyped here
    """As Ray Serve LLM's builder has it, around an engine whose policy is Ray's."""
    from ray import serve
    from ray.llm._internal.serve.core.ingress.router import LLMRouter
    from ray.serve.config import RequestRouterConfig

    policy = "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router.PrefixCacheAffinityRouter"
    engine = type(engine)(
        engine._bound_deployment.options(request_router_config=RequestRouterConfig(request_router_class=policy))
    )
    return engine._with_ingress_request_router(
        serve.deployment(LLMRouter, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}).bind(server=engine)
    )


async def _ask_all(url: str, model: str, questions: list[str], *, rate: float) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60.0, base_url=url) as client:
        await _until_both_answer(client, model)
        draw = random.Random(1)
        asking: list[asyncio.Task[dict[str, Any]]] = []
        for text in questions:
            asking.append(asyncio.create_task(_ask(client, model, text)))
            await asyncio.sleep(draw.expovariate(rate))
        for answer in await asyncio.gather(*asking):
            print(json.dumps(answer), flush=True)


async def _until_both_answer(client: httpx.AsyncClient, model: str) -> None:
    """Sessions are spread in every arm but Ray's, which is given ten seconds."""
    until_s, seen = time.monotonic() + _UP_S, set[str]()
    for turn in range(10_000):
        answer = await _ask(client, model, f"warm up {turn}", session=f"s{turn}")
        seen.add(answer["replica"])
        if len(seen) == REPLICAS or turn > 100:
            return
        if time.monotonic() > until_s:
            raise RuntimeError("two replicas are not up")
        await asyncio.sleep(0.1)


async def _ask(client: httpx.AsyncClient, model: str, text: str, *, session: str = "") -> dict[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": _TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"x-session-id": session} if session else {}
    began_s, first_s, last = time.perf_counter(), 0.0, dict[str, Any]()
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()[:300]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            frame = json.loads(line[6:])
            if not first_s and any(choice.get("delta", {}).get("content") for choice in frame.get("choices", [])):
                first_s = time.perf_counter() - began_s
            last = frame if frame.get("usage") else last
    usage = last.get("usage") or {}
    return {
        "ttft_s": first_s,
        "cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        "prompt": usage.get("prompt_tokens") or 0,
        "replica": last.get("system_fingerprint") or "",
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
