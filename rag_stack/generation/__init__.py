"""The generator: from a published model to a running vLLM.

model_import      a model from elsewhere becomes a published artifact
conversion        GGUF to the safetensors that vLLM reads
engine_settings   the release's engine arguments, checked against vLLM's own
worker            vLLM's worker, timed: device, weights, KV cache, warm-up
tokenizer         counts tokens as the engine will
"""
