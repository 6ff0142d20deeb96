"""The HTTP layer: wraps any OpenAI-compatible ASGI app, and needs neither Ray nor vLLM."""
