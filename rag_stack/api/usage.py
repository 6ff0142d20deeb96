"""The tokens that an engine reports: asked for with every stream, read, and taken out again where nobody else asked."""

from collections.abc import Mapping
from typing import Any

from rag_stack.rag.ordering import Served


def with_usage(body: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's body whose stream ends with a frame of usage, and is otherwise what it would have been."""
    if body.get("stream") is not True or not takes_out_usage(body):
        return dict(body)
    given = body.get("stream_options")
    # Without usage at the end there is none on the way either, whatever is asked for.
    options = {**(given if isinstance(given, dict) else {}), "include_usage": True, "continuous_usage_stats": False}
    return {**body, "stream_options": options}


def takes_out_usage(body: Mapping[str, Any]) -> bool:
    """Whether a stream's frame of usage is ours alone. Options that are no object are left for the engine to refuse."""
    options = body.get("stream_options")
    return options is None or (isinstance(options, dict) and not options.get("include_usage"))


def reads_cache(body: Mapping[str, Any]) -> bool:
    """Whether vLLM looks for a prompt in its prefix cache: not where it scores the prompt, as `echo` can ask, too."""
    return body.get("prompt_logprobs") is None and not body.get("echo")


def read_usage(body: Mapping[str, Any]) -> Served | None:
    """What a body or a frame says of tokens; None where it says nothing that can be used."""
    usage = body.get("usage")
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    answer = usage.get("completion_tokens")
    return Served(
        prompt_tokens=usage["prompt_tokens"],
        answer_tokens=answer if isinstance(answer, int) else 0,
        cached_tokens=cached if isinstance(cached, int) else None,
    )


def is_usage_frame(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk is the one that brings usage and nothing else."""
    return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)
